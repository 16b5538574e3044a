"""`token-classification`: a tag for each token of a text that is cut into tokens: words, say.

The tokenizer cuts tokens further into pieces; the first piece of each carries its tag (Devlin et al. 2019). Tags are
in BIO form (`B-name` begins a span, `I-name` goes on with it, `O` is outside) if all of the training are; else
they are plain, and neighbours with the same tag are one span. As CoNLL's evaluation has it, an `I-` that follows
nothing of its name begins a span.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.errors import CorruptError, DataError, RequestError
from maas_ray.tasks.metrics import mean_loss
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import AnswerRow, Column, RequestRow, Row, TensorSpec, UnlearntError, shortest
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.text.encoders import EncoderTask, EncoderTaskSpec
from maas_ray.tasks.text.networks import Bert, RecurrentText
from maas_ray.tasks.text.tokenization import Files, read_files, trimmed
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import torch

OUTSIDE = "O"
_NO_TAG = -100  # of pieces that carry none; torch's own loss leaves it out


class TokenClassificationSpec(EncoderTaskSpec):
    """`task: {type: token-classification}`"""

    type: Literal["token-classification"] = "token-classification"
    """Which task."""

    columns: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)

    def parse_row(self, row: Row) -> Row | None:
        """`tokens` and `tags`, lists of strings of one length; None when there are none."""
        tokens, tags = row["tokens"], row["tags"]
        if not tokens or not tags:
            return None
        for name, values in (("tokens", tokens), ("tags", tags)):
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ValueError(f"{name} is no list of strings")
        if len(tokens) != len(tags):
            raise ValueError(f"{len(tokens)} tokens, but {len(tags)} tags")
        return {"tokens": tokens, "tags": tags}

    def fit(self, rows: Iterable[Row]) -> "TokenClassification":
        """Tags, sorted; the tokenizer, unless one is given."""
        labels: set[str] = set()

        def texts() -> Iterable[str]:
            for row in rows:
                labels.update(row["tags"])
                yield " ".join(row["tokens"])

        reading = texts()
        files = self.tokenizer_files(reading, of_words=True)
        for _ in reading:  # what the tokenizer was not fitted on has tags too
            pass
        if len(labels) < 2:
            raise DataError(f"there must be two tags or more; the training split has {sorted(labels)}.")
        return TokenClassification(self, files, sorted(labels))


class TaggedText(RequestRow):
    """A text, or the tokens that it is cut into."""

    text: Annotated[str, Field(min_length=1)] | None = None
    """It is cut into words and single punctuation marks, as by BERT. Send `tokens` where the training's were others."""
    tokens: list[Annotated[str, Field(min_length=1)]] | None = None
    """The tokens, cut as in the training."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.text) == bool(self.tokens):
            raise PydanticCustomError("invalid_value", "Give either 'text' or 'tokens'")
        return self


class Entity(BaseModel):
    """A span of tokens."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    entity_group: str
    """What it is: a tag without its `B-` or `I-`."""
    score: float
    """Mean over its tokens of the probability of their tags."""
    word: str
    """Its tokens, joined by spaces."""
    start: int
    """Where it begins, characters of `text`; of the tokens joined by spaces, where they were sent."""
    end: int
    """Where it ends; the character there is not part of it."""


class Tags(AnswerRow):
    """What each token is, and the spans that makes."""

    entities: list[Entity]
    """The spans, as Hugging Face's pipeline tells them."""
    tokens: list[str]
    """The tokens."""
    tags: list[str]
    """The likeliest tag of each."""
    scores: list[float]
    """Its probability."""


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
        self._labels, self._label_ids = labels, {label: place for place, label in enumerate(labels)}
        self._names = np.array(labels, dtype=object)
        self.prefixed = all(label == OUTSIDE or label[:2] in ("B-", "I-") for label in labels)
        before = self.encoder.tokenizer.pre_tokenizer
        if type(before).__name__ == "ByteLevel":
            before.add_prefix_space = True  # as such a tokenizer's words look within a text

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
        """`input_ids` and `label` [n, max_length], `length` [n]. Tokens without any piece, or behind the cut, have no
        label; nor has a row without tags (a request).
        """
        encodings = self.encoder.encode([row["tokens"] for row in rows], words=True)
        ids, lengths = self.encoder.padded([encoding.ids for encoding in encodings])
        labels = np.full(ids.shape, _NO_TAG, np.int32)
        for place, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
            for piece, token in _firsts(encoding) if "tags" in row else ():
                labels[place, piece] = self._label_id(row["tags"][token])
        return {"input_ids": ids, "length": lengths, "label": labels}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Pieces are what the tokenizer makes of tokens; tags those of tokens that are read."""
        tags = self._names[encoded["label"][encoded["label"] != _NO_TAG]].tolist()
        tokens = lengths("tokens", (len(row["tokens"]) for row in rows))
        return [lengths("pieces", encoded["length"]), tokens, Trait("label", "tag", tags)]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Tokens, as their pieces read, and their tags."""
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
            raise CorruptError(f"{directory}: the features of {spec.type} name no labels.")
        return cls(spec, read_files(directory), state["labels"])

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        found = trimmed(batch["input_ids"], batch["length"])
        label = batch["label"][:, : found["input_ids"].shape[1]].astype(np.int64)
        return {**found, "label": torch.from_numpy(label)}

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Each row weighs the same, whatever the number of its tokens."""
        return _row_losses(self.logits(model, batch), batch["label"]).mean()

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        logits, label = self.logits(model, batch), batch["label"]
        losses = _row_losses(logits, label).double().cpu().numpy()
        truth, said = label.cpu().numpy(), logits.argmax(-1).cpu().numpy()
        found: Outcomes = {"loss": losses} | {name: np.empty(len(truth), object) for name in ("label", "prediction")}
        for row, (true, predicted) in enumerate(zip(truth, said, strict=True)):
            tagged = true != _NO_TAG
            found["label"][row] = self._names[true[tagged]].tolist()
            found["prediction"][row] = self._names[predicted[tagged]].tolist()
        return found

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats a token, rows weighing the same; `accuracy` of tokens; of spans that agree in both ends and in
        name `precision`, `recall` and `f1`, over all names together.
        """
        from sklearn import metrics

        found = {"loss": mean_loss(outcomes)}
        pairs = list(zip(outcomes["label"], outcomes["prediction"], strict=True))
        truth = [tag for tags, _ in pairs for tag in tags]
        if truth:
            found["accuracy"] = float(metrics.accuracy_score(truth, [tag for _, tags in pairs for tag in tags]))
        true: dict[tuple[int, int, int], str] = {}
        said: dict[tuple[int, int, int], str] = {}
        for row, sides in enumerate(pairs):
            for spans, tags in zip((true, said), sides, strict=True):
                spans.update({(row, start, end): name for start, end, name in spans_of(tags, self.prefixed)})
        places = sorted(true.keys() | said.keys())
        names = sorted({*true.values(), *said.values()})
        if names:
            precision, recall, f1, _ = metrics.precision_recall_fscore_support(
                [true.get(place, "") for place in places],
                [said.get(place, "") for place in places],
                labels=names,
                average="micro",
                zero_division=0.0,
            )
            found |= {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
        return found

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
            self._pieces([row.tokens])  # checked here, an error names the row
            return {"tokens": np.array(row.tokens, dtype=object)}
        words = _words(row.text or "")
        if not words:
            raise RequestError("It holds no word.", param="text", code="invalid_value")
        tokens, places = zip(*words, strict=True)
        self._pieces([list(tokens)])
        start, end = np.array(places, np.int64).T
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
        """`tokens` [n, T] → `tags` and `scores` [n, T], `tokens` as they came, and where each token stands: `start` and
        `end`, as they came too, or in the row's tokens joined by spaces.
        """
        import torch

        rows = [[str(token) for token in row] for row in inputs["tokens"]]
        pieces = self._pieces(rows)
        ids, lengths = self.encoder.padded([encoding.ids for encoding in pieces])
        with torch.inference_mode():
            scores = self.logits(model, trimmed(ids, lengths)).softmax(-1).numpy()
        places = np.array([[piece for piece, _ in _firsts(encoding)] for encoding in pieces])
        of_tokens = np.take_along_axis(scores, places[..., None], 1)  # [n, T, tags]
        widths = np.array([[len(token) + 1 for token in row] for row in rows])
        end = inputs.get("end", widths.cumsum(1) - 1)
        return {
            "tokens": inputs["tokens"],
            "tags": self._names[of_tokens.argmax(-1)],
            "scores": of_tokens.max(-1),
            "start": inputs.get("start", end - widths + 1),
            "end": end,
        }

    def _pieces(self, rows: list[list[str]]) -> list[Any]:
        """The pieces of each row's tokens.

        Raises:
            RequestError: some tokens would have no tag.
        """
        try:
            encodings = self.encoder.encode(rows, words=True)
        except ValueError as error:
            raise RequestError(f"{error}.", param="tokens", code="invalid_value") from error
        for row, encoding in zip(rows, encodings, strict=True):
            if encoding.overflowing:
                raise RequestError(
                    f"These {len(row)} tokens make more pieces than the {self.spec.max_length} that the model reads; "
                    "send them in parts.",
                    param="tokens",
                    code="context_length_exceeded",
                )
            missing = set(range(len(row))) - {token for _, token in _firsts(encoding)}
            if missing:
                place = min(missing)
                raise RequestError(
                    f"{row[place]!r} holds nothing that the tokenizer has a token for.",
                    param=f"tokens[{place}]",
                    code="invalid_value",
                )
        return encodings


def spans_of(tags: Sequence[str], prefixed: bool) -> list[tuple[int, int, str]]:
    """The spans that tags tell: first token, one past the last, name.

    Args:
        tags: of a row's tokens.
        prefixed: whether they are in BIO form.
    """
    found: list[tuple[int, int, str]] = []
    start, name = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        of = "" if tag == OUTSIDE else tag[2:] if prefixed else tag
        if name and (of != name or (prefixed and tag[0] == "B")):
            found.append((start, place, name))
            name = ""
        if of and not name:
            start, name = place, of
    return found


def _firsts(encoding: Any) -> list[tuple[int, int]]:
    """The place of each token's first piece, and the token's; in order."""
    seen: dict[int, int] = {}
    for piece, token in enumerate(encoding.word_ids):
        if token is not None:
            seen.setdefault(token, piece)
    return [(piece, token) for token, piece in seen.items()]


def _words(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Words and single punctuation marks, and where they stand."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    words: list[tuple[str, tuple[int, int]]] = BertPreTokenizer().pre_tokenize_str(text)
    return words


def _row_losses(logits: "torch.Tensor", label: "torch.Tensor") -> "torch.Tensor":
    """Mean cross-entropy, nats, of each row's tags. logits: [B, T, tags], label: [B, T] → [B]."""
    import torch.nn.functional as F

    losses = F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=_NO_TAG, reduction="none")
    return losses.view(label.shape).sum(1) / (label != _NO_TAG).sum(1).clamp(min=1)
