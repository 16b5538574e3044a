"""`feature-extraction`: embeds a text as a vector, close to the vectors of texts that belong with it.

It is trained on pairs with InfoNCE (van den Oord et al. 2018): each anchor must find its own positive among all
positives of its micro batch. Similarity is the cosine, in training as in the metrics. Negatives come from the same
worker's micro batch, so a larger `micro_batch_size` adds negatives, and more workers do not.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.errors import CorruptError, DataError, RequestError
from maas_ray.tasks.cells import text_of
from maas_ray.tasks.metrics import mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, RequestRow, Row, TensorSpec, shortest
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.text.encoders import EncoderTask, EncoderTaskSpec
from maas_ray.tasks.text.networks import Bert
from maas_ray.tasks.text.pooling import Pooling
from maas_ray.tasks.text.tokenization import Files, read_files, trimmed
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import torch

_RECALL_AT = (1, 5, 10)
_QUERIES = 1024  # rows ranked at once, to bound memory


class FeatureExtractionSpec(EncoderTaskSpec):
    """`task: {type: feature-extraction}`"""

    type: Literal["feature-extraction"] = "feature-extraction"
    """Which task."""
    max_length: int = Field(128, ge=8)
    """Maximum tokens of a text, including the tokenizer's special ones. Longer texts are truncated."""
    pooling: Literal["mean", "cls"] | None = None
    """mean: the mean of all tokens' states. cls: the first token's state. None: the setting in the tokenizer's
    directory, if that holds a model of sentence-transformers, else mean."""
    normalize: bool | None = None
    """Scale vectors to length 1. None: the setting in the tokenizer's directory, else true."""
    temperature: float = Field(0.05, gt=0)
    """Divisor of cosines in the loss. The lower it is, the more the closest wrong positives count."""

    columns: ClassVar[tuple[str, ...]] = ("anchor", "positive")
    inputs: ClassVar[tuple[str, ...]] = ("anchor",)

    def identity(self) -> dict[str, Any]:
        return super().identity() | self.pooled().document()

    def pooled(self) -> Pooling:
        """The pooling after applying these fields over the directory's settings."""
        pooling = Pooling()
        if isinstance(self.tokenizer, str):
            pooling = Pooling.of(Path(self.tokenizer).expanduser()) or pooling
        return self.over(pooling)

    def over(self, pooling: Pooling) -> Pooling:
        """A pooling with these fields in place of its own, if they are set."""
        chosen = {"pooling": self.pooling, "normalize": self.normalize}
        return pooling.model_copy(update={name: value for name, value in chosen.items() if value is not None})

    def parse_row(self, row: Row) -> Row | None:
        """`anchor` and `positive` as strings; None if either is missing."""
        texts = {name: text_of(name, row[name]) for name in self.columns}
        return texts if all(text and text.strip() for text in texts.values()) else None

    def fit(self, rows: Iterable[Row]) -> "FeatureExtraction":
        """Fit the tokenizer unless it is given."""
        files = self.tokenizer_files(row[name] for row in rows for name in self.columns)
        return FeatureExtraction(self, files, self.pooled())


class EmbeddedText(RequestRow):
    """A text."""

    text: Annotated[str, Field(min_length=1)] | None = Field(None, examples=["Hello"])
    """The text to embed."""
    tokens: list[Annotated[int, Field(ge=0)]] | None = None
    """Instead of `text`: ids of this model's own tokenizer, including special tokens."""
    truncate: bool = True
    """Truncate a text that is longer than the model reads. If false, such a text is refused."""

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
    """Number of tokens read."""


class FeatureExtraction(EncoderTask):
    """A fitted `feature-extraction` task."""

    spec: FeatureExtractionSpec
    spec_type = FeatureExtractionSpec
    networks = (Bert, Pretrained)
    auto_model = "AutoModel"
    headline = ("recall_at_1", "mrr", "loss")
    couples_rows = True  # the other positives of a forward pass are a row's negatives
    request, answer = EmbeddedText, Embedding

    def __init__(self, spec: FeatureExtractionSpec, files: Files, pooling: Pooling) -> None:
        super().__init__(spec, files)
        self.pooling = pooling

    @property
    def stored(self) -> dict[str, Column]:
        ids, length = Column(self.encoder.dtype, (self.spec.max_length,)), Column("int32")
        return {"anchor_ids": ids, "anchor_length": length, "positive_ids": ids, "positive_length": length}

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`anchor_ids` and `positive_ids` [n, max_length], with `anchor_length` and `positive_length` [n]."""
        columns = {}
        for name in self.spec.columns:
            encodings = self.encoder.encode([row[name] for row in rows])
            columns[f"{name}_ids"], columns[f"{name}_length"] = self.encoder.padded([e.ids for e in encodings])
        return columns

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        return [lengths(f"tokens of the {name}", encoded[f"{name}_length"]) for name in self.spec.columns]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: self.text_of(stored[f"{name}_ids"], stored[f"{name}_length"]) for name in self.spec.columns}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return {**super().save_state(directory), **self.pooling.document()}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "FeatureExtraction":
        if not state:
            raise CorruptError(f"{directory}: the features of {spec.type} lack `pooling`.", code="features_incomplete")
        return cls(spec, read_files(directory), Pooling.parse(state, source=f"{directory}: features"))

    def write_companions(self, config: Any, directory: Path) -> None:
        """Write the files that make sentence-transformers pool like this task."""
        width = config.get_text_config().hidden_size
        self.pooling.write(directory, width=width, max_length=self.spec.max_length)

    def check_pretrained(self, config: Any, directory: Path) -> None:
        super().check_pretrained(config, directory)
        if self.spec.pooling is not None and self.spec.normalize is not None:
            return
        own = Pooling.of(directory)
        if own and self.spec.over(own) != self.pooling:
            raise DataError(
                f"network.path: the model in {directory} has {own.words()}, but the dataset {self.pooling.words()}. "
                f"Prepare it with `tokenizer: {directory}`, or with `pooling` and `normalize` as you want them.",
                code="pooling_differs",
            )

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """The anchors followed by the positives, so that one forward pass takes both."""
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
        # Equal texts of another row are not wrong answers, so they are masked.
        same = [(ids[:, None] == ids[None]).all(-1) for ids in input_ids.chunk(2)]
        others = (same[0] | same[1]) & (rows[:, None] != rows[None])
        return F.cross_entropy(cosines.masked_fill(others, -torch.inf), rows, reduction="none")

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        """The usual outcomes, and `anchor_id` and `positive_id`, which are equal for rows with equal texts.

        The `loss` is that of training, among the rows of this batch; `by_row` gives the one that is measured.
        """
        vectors = self.embed(model, batch)
        query, positive = vectors.cpu().numpy().astype(np.float32).reshape(2, -1, vectors.shape[-1])
        ids, lengths = batch["input_ids"].cpu().numpy(), batch["attention_mask"].sum(1).tolist()
        texts = [_digest(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        return {
            "loss": self._losses(vectors, batch["input_ids"]).double().cpu().numpy(),
            "query": query,
            "positive": positive,
            "anchor_id": np.array(texts[: len(query)]),
            "positive_id": np.array(texts[len(query) :]),
        }

    def by_row(self, outcomes: Outcomes) -> Outcomes:
        """`loss` and `rank` of each row's positive among the distinct positives of all rows, and their number, `pool`.

        They depend on all rows, not on how rows are divided into batches. They are fixed before resampling, because the
        positives of resampled rows would be a smaller pool.
        """
        if "rank" in outcomes:
            return outcomes
        _, first, positive = np.unique(outcomes["positive_id"], return_index=True, return_inverse=True)
        pool = _unit(outcomes["positive"][first])
        also_right = _also_right(outcomes["anchor_id"], positive) if "anchor_id" in outcomes else None
        ranks, losses = [], []
        for start in range(0, len(positive), _QUERIES):
            rows = slice(start, start + _QUERIES)
            scores = _unit(outcomes["query"][rows]) @ pool.T
            right = np.take_along_axis(scores, positive[rows][:, None], axis=1)
            ranks.append(len(pool) - (scores < right).sum(1))  # ties rank first, as in scikit-learn
            if also_right is not None:
                for row, others in ((row, also_right.get(start + row)) for row in range(len(scores))):
                    if others is not None:
                        scores[row, others] = -np.inf
                over = np.exp((scores - right) / self.spec.temperature).sum(1)
                losses.append(np.log(over))
        loss = np.concatenate(losses) if losses else outcomes["loss"]
        return {"loss": loss, "rank": np.concatenate(ranks), "pool": np.full(len(positive), len(pool))}

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss`, in nats per row, and retrieval metrics by cosine among the distinct positives of all rows.

        `mrr` is the mean of 1 / rank, `recall_at_k` the share of ranks up to k; it is absent for pools of k or fewer.
        Both are easier with fewer rows.
        """
        outcomes = self.by_row(dict(outcomes))
        rank, pool = outcomes["rank"], outcomes["pool"][0]
        metrics = {"loss": mean_loss(outcomes)}
        if pool > 1:
            metrics["mrr"] = float(np.mean(1 / rank))
        return metrics | {f"recall_at_{k}": float(np.mean(rank <= k)) for k in _RECALL_AT if k < pool}

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
                f"The text has more than the {self.spec.max_length} tokens that this model reads; split it.",
                param="text",
                code="context_length_exceeded",
            )
        return {"text": np.array(row.text, dtype=object)}

    def _check_tokens(self, tokens: list[int]) -> None:
        if not tokens:
            raise RequestError(
                "tokens: the array is empty; give at least one token id.", param="tokens", code="invalid_value"
            )
        if max(tokens) >= self.vocab_size:
            raise RequestError(
                f"{max(tokens)} is not a token id of this model, which has {self.vocab_size}. Ids must come from the "
                "model's own tokenizer.",
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


def _also_right(anchor: np.ndarray, positive: np.ndarray) -> dict[int, np.ndarray]:
    """For rows whose anchor other rows have too: the positives of those rows, which are not wrong answers."""
    order = np.argsort(anchor, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(anchor[order])) + 1)
    found: dict[int, np.ndarray] = {}
    for rows in (group for group in groups if len(group) > 1):
        answers = np.unique(positive[rows])
        found |= {int(row): answers[answers != positive[row]] for row in rows}
    return found


def _digest(ids: np.ndarray) -> int:
    """An integer hash of a text's tokens."""
    from hashlib import sha256

    return int.from_bytes(sha256(ids.astype(np.int64).tobytes()).digest()[:8], "little", signed=True)
