"""`text-classification`: one label for a text."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from maas_ray.errors import CorruptError, DataError, RequestError
from maas_ray.tasks.base import AnswerRow, Column, Forward, Outcomes, RequestRow, Row, TensorSpec
from maas_ray.tasks.metrics import classification, mean_loss
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.text_encoders import AttentionText, Bert, EncoderTask, EncoderTaskSpec, RecurrentText
from maas_ray.tasks.tokenization import Files, read_files, trimmed

if TYPE_CHECKING:
    import torch


class TextClassificationSpec(EncoderTaskSpec):
    """`task: {type: text-classification}`"""

    type: Literal["text-classification"] = "text-classification"
    """Which task."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    inputs: ClassVar[tuple[str, ...]] = ("text",)

    def parse_row(self, row: Row) -> Row | None:
        """`text` and `label` as strings; None when either is missing."""
        text, label = row["text"], row["label"]
        if text is None or label is None or str(label) == "":
            return None
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}, not a string")
        return {"text": text, "label": str(label)} if text.strip() else None

    def fit(self, rows: Iterable[Row]) -> "TextClassification":
        """Label names, sorted; the tokenizer, unless one is given."""
        labels: set[str] = set()

        def texts() -> Iterable[str]:
            for row in rows:
                labels.add(row["label"])
                yield row["text"]

        reading = texts()
        files = self.tokenizer_files(reading)
        for _ in reading:  # what the tokenizer was not fitted on has labels too
            pass
        if len(labels) < 2:
            raise DataError(f"classification needs two labels or more; the training split has {sorted(labels)}.")
        return TextClassification(self, files, sorted(labels))


class ClassifiedText(RequestRow):
    """A text."""

    text: str = Field(min_length=1)
    """What to classify. Only its beginning is read, where it is longer than the texts of the training could be."""


class TextClass(AnswerRow):
    """What the text is."""

    label: str
    """The likeliest class."""
    scores: dict[str, float]
    """The probability of each class."""


class TextClassification(EncoderTask):
    """A fitted `text-classification` task."""

    spec: TextClassificationSpec
    spec_type = TextClassificationSpec
    networks = (RecurrentText, AttentionText, Bert, Pretrained)
    auto_model = "AutoModelForSequenceClassification"
    headline = ("accuracy", "f1", "loss")
    request, answer = ClassifiedText, TextClass

    def __init__(self, spec: TextClassificationSpec, files: Files, labels: list[str]) -> None:
        super().__init__(spec, files)
        self._labels, self._label_ids = labels, {label: place for place, label in enumerate(labels)}

    @property
    def class_names(self) -> list[str]:
        return self.labels

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of `scores`."""
        return self._labels

    @property
    def stored(self) -> dict[str, Column]:
        return {
            "input_ids": Column(self.encoder.dtype, (self.spec.max_length,)),
            "length": Column("int32"),
            "label": Column("int64"),
        }

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`input_ids` [n, max_length], `length` [n]; `label` [n], -1 where a row has none (a request)."""
        encodings = self.encoder.encode([row["text"] for row in rows])
        ids, lengths = self.encoder.padded([encoding.ids for encoding in encodings])
        labels = np.array([self._label_id(row) for row in rows], np.int64)
        return {"input_ids": ids, "length": lengths, "label": labels}

    def _label_id(self, row: Row) -> int:
        if "label" not in row:
            return -1
        try:
            return self._label_ids[row["label"]]
        except KeyError:
            raise ValueError(f"label {row['label']!r} does not occur in the training split") from None

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TextClassification":
        if not isinstance(state.get("labels"), list):
            raise CorruptError(f"{directory}: the features of {spec.type} name no labels.")
        return cls(spec, read_files(directory), state["labels"])

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        label = torch.from_numpy(np.ascontiguousarray(batch["label"]))
        return {**trimmed(batch["input_ids"], batch["length"]), "label": label}

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        import torch.nn.functional as F

        return F.cross_entropy(self.logits(model, batch), batch["label"])

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        import torch.nn.functional as F

        logits, label = self.logits(model, batch), batch["label"]
        return {
            "loss": F.cross_entropy(logits, label, reduction="none").double().cpu().numpy(),
            "label": label.cpu().numpy(),
            "scores": logits.softmax(-1).cpu().numpy(),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats a row, and those of `metrics.classification`."""
        return {"loss": mean_loss(outcomes), **classification(outcomes, self.labels)}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("text", "BYTES", (-1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, len(self.labels))))

    def to_inputs(self, row: ClassifiedText) -> dict[str, Any]:
        return {"text": np.array(row.text, dtype=object)}

    def to_answer(self, outputs: Mapping[str, Any]) -> TextClass:
        scores = (float(str(score)) for score in outputs["scores"])  # 0.1, not the 0.10000000149 that is nearest to it
        return TextClass(label=outputs["label"], scores=dict(zip(self.labels, scores, strict=True)))

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`text` [n] → `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        import torch

        try:
            stored = self.encode([{"text": str(text)} for text in inputs["text"]])
        except ValueError as error:
            raise RequestError(f"{error}.", param="text", code="invalid_value") from error
        with torch.inference_mode():
            scores = self.logits(model, trimmed(stored["input_ids"], stored["length"])).softmax(-1).numpy()
        return {"label": np.array(self.labels, dtype=object)[scores.argmax(-1)], "scores": scores}
