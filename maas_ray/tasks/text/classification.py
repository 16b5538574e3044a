"""`text-classification`: one label for a text."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from maas_ray.errors import CorruptError, RequestError
from maas_ray.tasks.cells import label as label_of
from maas_ray.tasks.cells import text_of
from maas_ray.tasks.classifying import Classifying, fit_labels
from maas_ray.tasks.fitting import Names, SummedTaskSpec
from maas_ray.tasks.network import Forward
from maas_ray.tasks.pretrained import Pretrained
from maas_ray.tasks.rows import Column, RequestRow, Row, TensorSpec
from maas_ray.tasks.text.encoders import EncoderTask, EncoderTaskSpec
from maas_ray.tasks.text.networks import AttentionText, Bert, RecurrentText
from maas_ray.tasks.text.tokenization import Files, read_files, trimmed
from maas_ray.tasks.traits import Trait, lengths

if TYPE_CHECKING:
    import torch


class TextClassificationSpec(EncoderTaskSpec, SummedTaskSpec):
    """`task: {type: text-classification}`"""

    type: Literal["text-classification"] = "text-classification"
    """Which task."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    inputs: ClassVar[tuple[str, ...]] = ("text",)

    def parse_row(self, row: Row) -> Row | None:
        """`text`, and the name of the `label`; None if either is missing."""
        text, name = text_of("text", row["text"]), label_of(row["label"])
        return {"text": text, "label": name} if name and text is not None and text.strip() else None

    def totals(self) -> Names:
        return Names("label")

    def fit_sample(self, rows: Iterable[Row]) -> Files:
        """The tokenizer, fitted unless it is given."""
        return self.tokenizer_files(row["text"] for row in rows)

    def fitted(self, sample: Files, totals: Names) -> "TextClassification":
        return TextClassification(self, sample, fit_labels(totals.names["label"]))


class ClassifiedText(RequestRow):
    """A text."""

    text: str = Field(min_length=1, examples=["Hello"])
    """The text to classify. If it is longer than the dataset's `max_length`, only its beginning is read."""


class TextClassification(EncoderTask, Classifying):
    """A fitted `text-classification` task."""

    spec: TextClassificationSpec
    spec_type = TextClassificationSpec
    networks = (RecurrentText, AttentionText, Bert, Pretrained)
    auto_model = "AutoModelForSequenceClassification"
    headline = ("accuracy", "f1", "loss")
    request = ClassifiedText

    def __init__(self, spec: TextClassificationSpec, files: Files, labels: list[str]) -> None:
        super().__init__(spec, files)
        self._labels = labels

    @property
    def labels(self) -> list[str]:
        return self._labels

    @property
    def stored(self) -> dict[str, Column]:
        return {
            "input_ids": Column(self.encoder.dtype, (self.spec.max_length,)),
            "length": Column("int32"),
            "label": Column("int64"),
        }

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """`input_ids` [n, max_length], `length` [n]; `label` [n], -1 for a row without a label (a request)."""
        encodings = self.encoder.encode([row["text"] for row in rows])
        ids, lengths = self.encoder.padded([encoding.ids for encoding in encodings])
        return {"input_ids": ids, "length": lengths, "label": self.label_ids(rows)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths in tokens, after truncation, and in characters; labels."""
        characters = lengths("characters", (len(row["text"]) for row in rows))
        return [lengths("tokens", encoded["length"]), characters, self.label_trait(encoded["label"])]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            "text": self.text_of(stored["input_ids"], stored["length"]),
            "label": self.labels[int(stored["label"])],
        }

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TextClassification":
        if not isinstance(state.get("labels"), list):
            raise CorruptError(f"{directory}: the features of {spec.type} lack `labels`.", code="features_incomplete")
        return cls(spec, read_files(directory), state["labels"])

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        label = torch.from_numpy(np.ascontiguousarray(batch["label"]))
        return {**trimmed(batch["input_ids"], batch["length"]), "label": label}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("text", "BYTES", (-1,)),)

    def to_inputs(self, row: ClassifiedText) -> dict[str, Any]:
        return {"text": np.array(row.text, dtype=object)}

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`text` [n] → `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        import torch

        try:
            stored = self.encode([{"text": str(text)} for text in inputs["text"]])
        except ValueError as error:
            raise RequestError(f"{error}.", param="text", code="invalid_value") from error
        with torch.inference_mode():
            return self.answered(self.logits(model, trimmed(stored["input_ids"], stored["length"])))
