"""`feature-extraction`: a vector for a text, near those of texts that belong with it.

Trained on pairs with InfoNCE (van den Oord et al. 2018): of all the positives in its batch, each anchor must find its
own. Similarity is the cosine, in training as in the metrics. The batch is what one worker passes through the network at
once (`micro_batch_size`): more workers do not add negatives, a larger micro batch does.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.errors import CorruptError, DataError, RequestError
from maas_ray.spec import Spec
from maas_ray.tasks.metrics import mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, RequestRow, Row, TensorSpec, shortest
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.text.encoders import EncoderTask, EncoderTaskSpec
from maas_ray.tasks.text.networks import Bert
from maas_ray.tasks.text.tokenization import Files, read_files, trimmed
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import torch

_RECALL_AT = (1, 5, 10)
_QUERIES = 1024  # ranked at once


class Pooling(Spec):
    """How a text's states become its vector."""

    pooling: Literal["mean", "cls"] = "mean"
    """mean: the mean of all tokens' states. cls: the first token's."""
    normalize: bool = True
    """Whether the vector has length 1."""


class FeatureExtractionSpec(EncoderTaskSpec):
    """`task: {type: feature-extraction}`"""

    type: Literal["feature-extraction"] = "feature-extraction"
    """Which task."""
    max_length: int = Field(128, ge=8)
    """Most tokens of a text that the model reads, the tokenizer's special ones among them. What is longer is cut."""
    pooling: Literal["mean", "cls"] | None = None
    """mean: the mean of all tokens' states. cls: the first token's. None: as the tokenizer's directory says, where it
    holds a model of sentence-transformers; else mean."""
    normalize: bool | None = None
    """Whether vectors are given length 1. None: as the tokenizer's directory says, likewise; else yes."""
    temperature: float = Field(0.05, gt=0)
    """What cosines are divided by in the loss: the lower, the more the nearest wrong positives count."""

    columns: ClassVar[tuple[str, ...]] = ("anchor", "positive")
    inputs: ClassVar[tuple[str, ...]] = ("anchor",)

    def identity(self) -> dict[str, Any]:
        return super().identity() | self.pooled().document()

    def pooled(self) -> Pooling:
        """The pooling that these fields, and the directory, mean."""
        found = Pooling()
        if isinstance(self.tokenizer, str):
            found = _pooling_of(Path(self.tokenizer).expanduser()) or found
        chosen = {"pooling": self.pooling, "normalize": self.normalize}
        return found.model_copy(update={name: value for name, value in chosen.items() if value is not None})

    def parse_row(self, row: Row) -> Row | None:
        """`anchor` and `positive` as strings; None when either is missing."""
        for name in self.columns:
            if row[name] is not None and not isinstance(row[name], str):
                raise ValueError(f"{name} is a {type(row[name]).__name__}, not a string")
        if not all(row[name] and row[name].strip() for name in self.columns):
            return None
        return {name: row[name] for name in self.columns}

    def fit(self, rows: Iterable[Row]) -> "FeatureExtraction":
        """The tokenizer, unless one is given."""
        files = self.tokenizer_files(row[name] for row in rows for name in self.columns)
        return FeatureExtraction(self, files, self.pooled())


class EmbeddedText(RequestRow):
    """A text."""

    text: Annotated[str, Field(min_length=1)] | None = None
    """What to embed."""
    tokens: list[Annotated[int, Field(ge=0)]] | None = None
    """In place of `text`: ids of this model's own tokenizer, special tokens included."""
    truncate: bool = True
    """Whether a text that is longer than the model reads is cut. Else it is refused."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.text) == bool(self.tokens):
            raise PydanticCustomError("invalid_value", "Give either 'text' or 'tokens'")
        return self


class Embedding(AnswerRow):
    """The text as a vector."""

    embedding: list[float]
    """The vector."""
    tokens: int
    """How many tokens of the text were read."""


class FeatureExtraction(EncoderTask):
    """A fitted `feature-extraction` task."""

    spec: FeatureExtractionSpec
    spec_type = FeatureExtractionSpec
    networks = (Bert, Pretrained)
    auto_model = "AutoModel"
    headline = ("recall_at_1", "mrr", "loss")
    request, answer = EmbeddedText, Embedding

    def __init__(self, spec: FeatureExtractionSpec, files: Files, pooling: Pooling) -> None:
        super().__init__(spec, files)
        self.pooling = pooling

    @property
    def stored(self) -> dict[str, Column]:
        ids, length = Column(self.encoder.dtype, (self.spec.max_length,)), Column("int32")
        return {"anchor_ids": ids, "anchor_length": length, "positive_ids": ids, "positive_length": length}

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """Of each column `_ids` [n, max_length] and `_length` [n]."""
        found = {}
        for name in self.spec.columns:
            encodings = self.encoder.encode([row[name] for row in rows])
            found[f"{name}_ids"], found[f"{name}_length"] = self.encoder.padded([one.ids for one in encodings])
        return found

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        return [lengths(f"tokens of the {name}", encoded[f"{name}_length"]) for name in self.spec.columns]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: self.text_of(stored[f"{name}_ids"], stored[f"{name}_length"]) for name in self.spec.columns}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return {**super().save_state(directory), **self.pooling.document()}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "FeatureExtraction":
        if not state:
            raise CorruptError(f"{directory}: the features of {spec.type} name no pooling.")
        return cls(spec, read_files(directory), Pooling.parse(state, source=f"{directory}: features"))

    def write_companions(self, config: Any, directory: Path) -> None:
        """The files by which sentence-transformers pools as this task does."""
        modules = ["Transformer", "Pooling", *(["Normalize"] if self.pooling.normalize else [])]
        listed = [
            {"idx": place, "name": str(place), "path": f"{place}_{module}" if place else ""}
            | {"type": f"sentence_transformers.models.{module}"}
            for place, module in enumerate(modules)
        ]
        pooling = {
            "word_embedding_dimension": config.get_text_config().hidden_size,
            "pooling_mode_cls_token": self.pooling.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling.pooling == "mean",
        }
        documents = {
            "modules.json": listed,
            "sentence_bert_config.json": {"max_seq_length": self.spec.max_length, "do_lower_case": False},
            "1_Pooling/config.json": pooling,
        }
        for name, document in documents.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """The anchors, and behind them the positives, so that one forward pass takes both."""
        ids, lengths = (
            np.concatenate([batch[f"{name}_{part}"] for name in self.spec.columns]) for part in ("ids", "length")
        )
        return trimmed(ids, lengths)

    def embed(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """`input_ids` and `attention_mask` [B, T] → vectors, fp32 [B, width]."""
        import torch.nn.functional as F

        mask = batch["attention_mask"]
        states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None].to(states.dtype)
        first = self.pooling.pooling == "cls"
        vectors: torch.Tensor = states[:, 0] if first else (states * weights).sum(1) / weights.sum(1)
        return F.normalize(vectors, dim=-1) if self.pooling.normalize else vectors

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        return self._losses(self.embed(model, batch), batch["input_ids"]).mean()

    def _losses(self, vectors: "torch.Tensor", input_ids: "torch.Tensor") -> "torch.Tensor":
        """InfoNCE, nats, of each row: `vectors` and `input_ids` of n anchors and their n positives → [n]."""
        import torch
        import torch.nn.functional as F

        anchors, positives = F.normalize(vectors, dim=-1).chunk(2)
        cosines = anchors @ positives.T / self.spec.temperature
        rows = torch.arange(len(cosines), device=cosines.device)
        # What another row has word for word is no wrong answer for this one.
        same = [(ids[:, None] == ids[None]).all(-1) for ids in input_ids.chunk(2)]
        others = (same[0] | same[1]) & (rows[:, None] != rows[None])
        return F.cross_entropy(cosines.masked_fill(others, -torch.inf), rows, reduction="none")

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        """Beside the usual ones `positive_id`, the same for rows whose positives are the same."""
        vectors = self.embed(model, batch)
        query, positive = vectors.cpu().numpy().astype(np.float32).reshape(2, -1, vectors.shape[-1])
        ids, lengths = batch["input_ids"].cpu().numpy(), batch["attention_mask"].sum(1).tolist()
        return {
            "loss": self._losses(vectors, batch["input_ids"]).double().cpu().numpy(),
            "query": query,
            "positive": positive,
            "positive_id": np.array([_digest(ids[row, : lengths[row]]) for row in range(len(query), len(ids))]),
        }

    def by_row(self, outcomes: Outcomes) -> Outcomes:
        """Beside `loss` the `rank` of each row's positive among the different positives of all these rows, and how many
        those are, `pool`. Of rows that are drawn from them the pool must not be made again: it would be a smaller one.
        """
        if "rank" in outcomes:
            return outcomes
        _, first, place = np.unique(outcomes["positive_id"], return_index=True, return_inverse=True)
        pool = _unit(outcomes["positive"][first])
        ranks = []
        for start in range(0, len(place), _QUERIES):
            rows = slice(start, start + _QUERIES)
            scores = _unit(outcomes["query"][rows]) @ pool.T
            right = np.take_along_axis(scores, place[rows][:, None], axis=1)
            ranks.append(len(pool) - (scores < right).sum(1))  # what scores the same comes before, as in scikit-learn
        return {"loss": outcomes["loss"], "rank": np.concatenate(ranks), "pool": np.full(len(place), len(pool))}

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss`, in nats a row, which depends on the rows of a pass; and how each row's query finds its positive among
        the different positives of these very rows, by cosine: `mrr` (mean of 1 / rank) and `recall_at_k` (share within
        the first k), which are easier the fewer rows there are. Of a pool of k or fewer `recall_at_k` is left out.
        """
        outcomes = self.by_row(dict(outcomes))
        rank, pool = outcomes["rank"], outcomes["pool"][0]
        found = {"loss": mean_loss(outcomes)}
        if pool > 1:
            found["mrr"] = float(np.mean(1 / rank))
        return found | {f"recall_at_{k}": float(np.mean(rank <= k)) for k in _RECALL_AT if k < pool}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("text", "BYTES", (-1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("embedding", "FP32", (-1, -1)), TensorSpec("tokens", "INT64", (-1,)))

    def to_inputs(self, row: EmbeddedText) -> dict[str, Any]:
        if row.tokens is not None:
            self._check_tokens(row.tokens)
            return {"tokens": np.array(row.tokens, np.int64)}
        if not row.truncate and self._encodings([row.text or ""])[0].overflowing:
            raise RequestError(
                f"The text has more than the {self.spec.max_length} tokens that this model reads; send it in parts.",
                param="text",
                code="context_length_exceeded",
            )
        return {"text": np.array(row.text, dtype=object)}

    def _check_tokens(self, tokens: list[int]) -> None:
        if max(tokens) >= self.vocab_size:
            raise RequestError(
                f"{max(tokens)} is no token of this model, which has {self.vocab_size}. They must come from "
                "its own tokenizer.",
                param="tokens",
                code="invalid_value",
            )
        if len(tokens) > self.spec.max_length:
            raise RequestError(
                f"{len(tokens)} tokens are more than the {self.spec.max_length} that this model reads.",
                param="tokens",
                code="context_length_exceeded",
            )

    def to_answer(self, outputs: Mapping[str, Any]) -> Embedding:
        values = [shortest(value) for value in outputs["embedding"]]
        return Embedding(embedding=values, tokens=int(outputs["tokens"]))

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`text` [n], or `tokens` int64 [n, T] → `embedding` float32 [n, width] and `tokens` read, int64 [n]."""
        import torch

        if "tokens" in inputs:
            ids, lengths = inputs["tokens"], np.full(len(inputs["tokens"]), inputs["tokens"].shape[1], np.int32)
        else:
            encodings = self._encodings([str(text) for text in inputs["text"]])
            ids, lengths = self.encoder.padded([encoding.ids for encoding in encodings])
        with torch.inference_mode():
            vectors = self.embed(model, trimmed(ids, lengths))
        return {"embedding": vectors.numpy().astype(np.float32), "tokens": lengths.astype(np.int64)}

    def _encodings(self, texts: list[str]) -> list[Any]:
        try:
            return self.encoder.encode(texts)
        except ValueError as error:
            raise RequestError(f"{error}.", param="text", code="invalid_value") from error


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit


def _digest(ids: np.ndarray) -> int:
    """A number that stands for a text, by its tokens."""
    from hashlib import sha256

    return int.from_bytes(sha256(ids.astype(np.int64).tobytes()).digest()[:8], "little", signed=True)


def _pooling_of(directory: Path) -> Pooling | None:
    """How a model of sentence-transformers pools; None: the directory holds none.

    Raises:
        DataError: in a way that this task does not know.
    """
    path = directory / "modules.json"
    if not path.is_file():
        return None
    modules = json.loads(path.read_text(encoding="utf-8"))
    kinds = {module["type"].rpartition(".")[2]: module.get("path", "") for module in modules}
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if unknown or "Pooling" not in kinds:
        raise DataError(f"{path} has modules that this task cannot do: {', '.join(sorted(unknown or kinds))}.")
    config = json.loads((directory / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    prefix = "pooling_mode_"
    modes = tuple(name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on)
    known: dict[tuple[str, ...], Literal["mean", "cls"]] = {("mean_tokens",): "mean", ("cls_token",): "cls"}
    if modes not in known:
        raise DataError(f"{directory} pools by {' and '.join(modes)}; this task knows mean_tokens and cls_token.")
    return Pooling(pooling=known[modes], normalize="Normalize" in kinds)
