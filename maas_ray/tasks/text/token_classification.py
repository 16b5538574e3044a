"""`token-classification`: a tag for each token (such as a word) of a text.

The tokenizer splits tokens into pieces; the first piece of a token carries its tag (Devlin et al. 2019). If all tags in
training have BIO form (`B-name` begins a span, `I-name` continues it, `O` is outside), tags are read so. Otherwise they
are plain, and neighbours with the same tag form one span. As in CoNLL's evaluation, an `I-` tag that does not continue
a span begins one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.errors import CorruptError, DataError, InvalidError, RequestError, UnlearntError
from maas_ray.tasks.cells import indices
from maas_ray.tasks.cells import label as label_of
from maas_ray.tasks.fitting import Names, SummedTaskSpec
from maas_ray.tasks.metrics import mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, RequestRow, Row, TensorSpec, shortest
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.text.encoders import EncoderTask, EncoderTaskSpec
from maas_ray.tasks.text.networks import Bert, RecurrentText
from maas_ray.tasks.text.tokenization import Files, read_files, trimmed
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import torch

OUTSIDE = "O"
_NO_TAG = -100  # marks pieces without a tag; torch's cross entropy ignores it


class TokenClassificationSpec(EncoderTaskSpec, SummedTaskSpec):
    """`task: {type: token-classification}`"""

    type: Literal["token-classification"] = "token-classification"
    """Which task."""

    columns: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def parse_row(self, row: Row) -> Row | None:
        """`tokens`, and the names of the `tags`, lists of one length; None if they are empty."""
        tokens, tags = row["tokens"], row["tags"]
        if not tokens or not tags:
            return None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise InvalidError("wrong_type", "tokens must be a list of strings")
        if not isinstance(tags, list):
            raise InvalidError("wrong_type", "tags must be a list of names or numbers")
        tags = list(map(label_of, tags))
        if not all(tags):
            raise InvalidError("tag_missing", "tags: one is missing; name tokens outside of a span `O`")
        if len(tokens) != len(tags):
            raise InvalidError("length_mismatch", f"the row has {len(tokens)} tokens, but {len(tags)} tags")
        return {"tokens": tokens, "tags": tags}

    def totals(self) -> Names:
        return Names("tags")

    def fit_sample(self, rows: Iterable[Row]) -> Files:
        """The tokenizer, fitted unless it is given."""
        return self.tokenizer_files((" ".join(row["tokens"]) for row in rows), of_words=True)

    def fitted(self, sample: Files, totals: Names) -> "TokenClassification":
        tags = sorted(totals.names["tags"])
        if len(tags) < 2:
            raise DataError(
                f"the training split has {len(tags)} tags: {tags}. There must be at least two.",
                code="too_few_labels",
            )
        return TokenClassification(self, sample, tags)


class TaggedText(RequestRow):
    """A text, or its tokens."""

    text: Annotated[str, Field(min_length=1)] | None = Field(None, examples=["Hello"])
    """A text, to be split into words and punctuation marks as BERT does. If training split otherwise, send `tokens`."""
    tokens: list[Annotated[str, Field(min_length=1)]] | None = None
    """The tokens, split as in training."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.text) == bool(self.tokens):
            raise PydanticCustomError("invalid_value", "Give either 'text' or 'tokens'")
        return self


class Entity(BaseModel):
    """A span of tokens."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    entity_group: str
    """Name of the span: its tag without `B-` or `I-`."""
    score: float
    """Mean probability of its tokens' tags."""
    word: str
    """Its tokens, joined by spaces."""
    start: int
    """Offset of its first character in `text`, or in the tokens joined by spaces if tokens were sent."""
    end: int
    """Offset after its last character."""


class Tags(AnswerRow):
    """The tags of the tokens, and the spans that they form."""

    entities: list[Entity]
    """The spans, in the form of Hugging Face's pipeline."""
    tokens: list[str]
    """The tokens."""
    tags: list[str]
    """The most likely tag of each token."""
    scores: list[float]
    """Probability of each tag."""


class TokenClassification(EncoderTask):
    """A fitted `token-classification` task."""

    spec: TokenClassificationSpec
    spec_type = TokenClassificationSpec
    networks = (RecurrentText, Bert, Pretrained)
    auto_model = "AutoModelForTokenClassification"
    headline = ("f1", "accuracy", "loss")
    request, answer = TaggedText, Tags
    per_token = True

    def __init__(self, spec: TokenClassificationSpec, files: Files, labels: list[str]) -> None:
        super().__init__(spec, files)
        self._labels, self._label_ids = labels, indices(labels)
        self._names = np.array(labels, dtype=object)
        self.prefixed = all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in labels)
        splitter = self.encoder.tokenizer.pre_tokenizer
        if type(splitter).__name__ == "ByteLevel":
            splitter.add_prefix_space = True  # words are encoded as they are inside a text

    @property
    def labels(self) -> list[str]:
        """The tags."""
        return self._labels

    @property
    def stored(self) -> dict[str, Column]:
        length = self.spec.max_length
        return {
            "input_ids": Column(self.encoder.dtype, (length,)),
            "length": Column("int32"),
            "label": Column("int32", (length,)),
        }

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`input_ids` and `label` [n, max_length], `length` [n].

        Tokens without pieces, truncated tokens and rows without tags (requests) have no label.
        """
        encodings = self.encoder.encode([row["tokens"] for row in rows], words=True)
        ids, lengths = self.encoder.padded([encoding.ids for encoding in encodings])
        labels = np.full(ids.shape, _NO_TAG, np.int32)
        for index, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
            for piece, token in _firsts(encoding) if "tags" in row else ():
                labels[index, piece] = self._label_id(row["tags"][token])
        return {"input_ids": ids, "length": lengths, "label": labels}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths in pieces, after truncation, and in tokens; tags of the tokens that are read."""
        tags = self._names[encoded["label"][encoded["label"] != _NO_TAG]].tolist()
        tokens = lengths("tokens", (len(row["tokens"]) for row in rows))
        return [lengths("pieces", encoded["length"]), tokens, Trait("label", "tag", tags)]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tokens, decoded from their pieces, and their tags."""
        ids, length = stored["input_ids"], int(stored["length"])
        tags = stored["label"][:length]
        firsts = np.flatnonzero(tags != _NO_TAG)
        tokens = [
            self.text_of(ids[start:end], end - start).strip()
            for start, end in zip(firsts, [*firsts[1:], length], strict=True)
        ]
        return {"tokens": tokens, "tags": self._names[tags[firsts]].tolist()}

    def _label_id(self, tag: str) -> int:
        try:
            return self._label_ids[tag]
        except KeyError:
            raise UnlearntError(f"tag {tag!r} does not occur in the training split") from None

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TokenClassification":
        if not isinstance(state.get("labels"), list):
            raise CorruptError(f"{directory}: the features of {spec.type} lack `labels`.", code="features_incomplete")
        return cls(spec, read_files(directory), state["labels"])

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        tensors = trimmed(batch["input_ids"], batch["length"])
        label = batch["label"][:, : tensors["input_ids"].shape[1]].astype(np.int64)
        return {**tensors, "label": torch.from_numpy(label)}

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """The mean of the rows' losses; rows have equal weight, whatever their length."""
        return _row_losses(self.logits(model, batch), batch["label"]).mean()

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        logits, label = self.logits(model, batch), batch["label"]
        losses = _row_losses(logits, label).double().cpu().numpy()
        truth, predictions = label.cpu().numpy(), logits.argmax(-1).cpu().numpy()
        outcomes: Outcomes = {"loss": losses} | {name: np.empty(len(truth), object) for name in ("label", "prediction")}
        for row, (true, predicted) in enumerate(zip(truth, predictions, strict=True)):
            tagged = true != _NO_TAG
            outcomes["label"][row] = self._names[true[tagged]].tolist()
            outcomes["prediction"][row] = self._names[predicted[tagged]].tolist()
        return outcomes

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats per token, with equal weight for rows; `accuracy` of tokens; span metrics.

        Span metrics are `precision`, `recall` and `f1`. A span is right if its start, end and name are.
        They are over all names together (micro).
        """
        from sklearn import metrics

        result = {"loss": mean_loss(outcomes)}
        pairs = list(zip(outcomes["label"], outcomes["prediction"], strict=True))
        truth = [tag for tags, _ in pairs for tag in tags]
        if truth:
            result["accuracy"] = float(metrics.accuracy_score(truth, [tag for _, tags in pairs for tag in tags]))
        true: dict[tuple[int, int, int], str] = {}
        predicted: dict[tuple[int, int, int], str] = {}
        for row, sides in enumerate(pairs):
            for spans, tags in zip((true, predicted), sides, strict=True):
                spans.update({(row, start, end): name for start, end, name in spans_of(tags, self.prefixed)})
        spans_seen = sorted(true.keys() | predicted.keys())
        names = sorted({*true.values(), *predicted.values()})
        if names:
            precision, recall, f1, _ = metrics.precision_recall_fscore_support(
                [true.get(span, "") for span in spans_seen],
                [predicted.get(span, "") for span in spans_seen],
                labels=names,
                average="micro",
                zero_division=0.0,
            )
            result |= {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
        return result

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("tokens", "BYTES", (-1, -1)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("tokens", "BYTES", (-1, -1)),
            TensorSpec("tags", "BYTES", (-1, -1)),
            TensorSpec("scores", "FP32", (-1, -1)),
            TensorSpec("start", "INT64", (-1, -1)),
            TensorSpec("end", "INT64", (-1, -1)),
        )

    def to_inputs(self, row: TaggedText) -> dict[str, Any]:
        if row.tokens is not None:
            self._pieces([row.tokens])  # checked here so that an error names the row
            return {"tokens": np.array(row.tokens, dtype=object)}
        words = _words(row.text or "")
        if not words:
            raise RequestError("The text does not contain a word.", param="text", code="invalid_value")
        tokens, offsets = zip(*words, strict=True)
        self._pieces([list(tokens)])
        start, end = np.array(offsets, np.int64).T
        return {"tokens": np.array(tokens, dtype=object), "start": start, "end": end}

    def to_answer(self, outputs: Mapping[str, Any]) -> Tags:
        tokens, tags = [str(token) for token in outputs["tokens"]], [str(tag) for tag in outputs["tags"]]
        scores = [shortest(score) for score in outputs["scores"]]
        entities = [
            Entity(
                entity_group=name,
                score=float(np.mean(scores[start:end])),
                word=" ".join(tokens[start:end]),
                start=int(outputs["start"][start]),
                end=int(outputs["end"][end - 1]),
            )
            for start, end, name in spans_of(tags, self.prefixed)
        ]
        return Tags(entities=entities, tokens=tokens, tags=tags, scores=scores)

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`tokens` [n, T] → `tokens`, `tags`, `scores` and the offsets `start` and `end`, each [n, T].

        Offsets are those of the input, or else those in the row's tokens joined by spaces.
        """
        import torch

        rows = [[str(token) for token in row] for row in inputs["tokens"]]
        pieces = self._pieces(rows)
        ids, lengths = self.encoder.padded([encoding.ids for encoding in pieces])
        with torch.inference_mode():
            scores = self.logits(model, trimmed(ids, lengths)).softmax(-1).numpy()
        firsts = np.array([[piece for piece, _ in _firsts(encoding)] for encoding in pieces])
        token_scores = np.take_along_axis(scores, firsts[..., None], 1)  # [n, T, tags]
        widths = np.array([[len(token) + 1 for token in row] for row in rows])
        end = inputs.get("end", widths.cumsum(1) - 1)
        return {
            "tokens": inputs["tokens"],
            "tags": self._names[token_scores.argmax(-1)],
            "scores": token_scores.max(-1),
            "start": inputs.get("start", end - widths + 1),
            "end": end,
        }

    def _pieces(self, rows: list[list[str]]) -> list[Any]:
        """The pieces of each row's tokens.

        Raises:
            RequestError: some tokens would not get a tag.
        """
        try:
            encodings = self.encoder.encode(rows, words=True)
        except ValueError as error:
            raise RequestError(f"{error}.", param="tokens", code="invalid_value") from error
        for row, encoding in zip(rows, encodings, strict=True):
            if encoding.overflowing:
                raise RequestError(
                    f"The {len(row)} tokens have more than the {self.spec.max_length} pieces that this model reads; "
                    "split them.",
                    param="tokens",
                    code="context_length_exceeded",
                )
            missing = set(range(len(row))) - {token for _, token in _firsts(encoding)}
            if missing:
                index = min(missing)
                raise RequestError(
                    f"The tokenizer has no token for anything in {row[index]!r}.",
                    param=f"tokens[{index}]",
                    code="invalid_value",
                )
        return encodings


def spans_of(tags: Sequence[str], prefixed: bool) -> list[tuple[int, int, str]]:
    """The spans that tags form: first token, one past the last, name.

    Args:
        tags: tags of a row's tokens.
        prefixed: True if they have BIO form.
    """
    spans: list[tuple[int, int, str]] = []
    start, name = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        group = "" if tag == OUTSIDE else tag[2:] if prefixed else tag
        if name and (group != name or (prefixed and tag[0] == "B")):
            spans.append((start, index, name))
            name = ""
        if group and not name:
            start, name = index, group
    return spans


def _firsts(encoding: Any) -> list[tuple[int, int]]:
    """The index of each token's first piece, with the token's index, in order."""
    seen: dict[int, int] = {}
    for piece, token in enumerate(encoding.word_ids):
        if token is not None:
            seen.setdefault(token, piece)
    return [(piece, token) for token, piece in seen.items()]


def _words(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Words and punctuation marks with their offsets."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    words: list[tuple[str, tuple[int, int]]] = BertPreTokenizer().pre_tokenize_str(text)
    return words


def _row_losses(logits: "torch.Tensor", label: "torch.Tensor") -> "torch.Tensor":
    """Mean cross-entropy of each row's tags, nats. logits: [B, T, tags], label: [B, T] → [B]."""
    import torch.nn.functional as F

    losses = F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=_NO_TAG, reduction="none")
    return losses.view(label.shape).sum(1) / (label != _NO_TAG).sum(1).clamp(min=1)
