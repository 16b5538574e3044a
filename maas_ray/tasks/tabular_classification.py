"""`tabular-classification`: one label for a row of a table."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maas_ray.errors import DataError
from maas_ray.tasks.base import AnswerRow, Column, Forward, Outcomes, Row, TensorSpec
from maas_ray.tasks.cells import category
from maas_ray.tasks.metrics import classification, mean_loss
from maas_ray.tasks.table_features import TableFeatures, fit_features
from maas_ray.tasks.tables import Linear, Mlp, TableSpec, TableTask

if TYPE_CHECKING:
    import torch


class TabularClassificationSpec(TableSpec):
    """`task: {type: tabular-classification, target: species}`"""

    type: Literal["tabular-classification"] = "tabular-classification"
    """Which task."""

    def parse_target(self, target: float | str) -> str:
        return category(target)

    def fit(self, rows: Iterable[Row]) -> "TabularClassification":
        labels: set[str] = set()

        def watched() -> Iterator[Row]:
            for row in rows:
                labels.add(row["target"])
                yield row

        features = fit_features(self, watched())
        if len(labels) < 2:
            raise DataError(f"classification needs two labels or more; the training split has {sorted(labels)}.")
        return TabularClassification(self, features, sorted(labels))


class TableLabel(AnswerRow):
    """What a row is."""

    label: str
    """The likeliest class."""
    scores: dict[str, float]
    """The probability of each class."""


class TabularClassification(TableTask):
    """A fitted `tabular-classification` task."""

    spec: TabularClassificationSpec
    spec_type = TabularClassificationSpec
    networks = (Linear, Mlp)
    headline = ("f1", "accuracy", "roc_auc", "loss")
    answer = TableLabel

    def __init__(self, spec: TabularClassificationSpec, features: TableFeatures, labels: list[str]) -> None:
        super().__init__(spec, features)
        self.labels = labels
        """Names of the classes, in the order of `scores`."""
        self._label_ids = {label: place for place, label in enumerate(labels)}

    @property
    def class_names(self) -> list[str]:
        return self.labels

    @property
    def outputs_of_network(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> dict[str, Column]:
        return {**super().stored, "label": Column("int64")}

    def encode_target(self, targets: list[Any]) -> dict[str, np.ndarray]:
        for target in targets:
            if target not in self._label_ids:
                raise ValueError(f"label {target!r} does not occur in the training split")
        return {"label": np.array([self._label_ids[target] for target in targets], np.int64)}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return self.features.document() | {"labels": self.labels}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TabularClassification":
        columns = {name: value for name, value in state.items() if name != "labels"}
        return cls(spec, TableFeatures.parse(columns, source=f"{directory}: features"), list(state["labels"]))

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Cross entropy in nats."""
        import torch.nn.functional as F

        return F.cross_entropy(self.network_outputs(model, batch), batch["label"])

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        import torch.nn.functional as F

        logits, label = self.network_outputs(model, batch), batch["label"]
        return {
            "loss": F.cross_entropy(logits, label, reduction="none").double().cpu().numpy(),
            "label": label.cpu().numpy(),
            "scores": logits.softmax(-1).cpu().numpy(),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats a row, and those of `metrics.classification`."""
        return {"loss": mean_loss(outcomes), **classification(outcomes, self.labels)}

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, len(self.labels))))

    def to_answer(self, outputs: Mapping[str, Any]) -> TableLabel:
        scores = (float(str(score)) for score in outputs["scores"])  # 0.1, not the 0.10000000149 that is nearest to it
        return TableLabel(label=outputs["label"], scores=dict(zip(self.labels, scores, strict=True)))

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A tensor for each column, [n] → `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        scores = self.network_answers(model, inputs).softmax(-1).numpy()
        return {"label": np.array(self.labels, object)[scores.argmax(-1)], "scores": scores}
