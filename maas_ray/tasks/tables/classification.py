"""`tabular-classification`: one label for a row of a table."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maas_ray.errors import InvalidError
from maas_ray.tasks.cells import label
from maas_ray.tasks.classifying import Classifying, fit_labels
from maas_ray.tasks.fitting import Names, SummedTaskSpec
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Column, Row
from maas_ray.tasks.tables.features import TableFeatures, fit_features
from maas_ray.tasks.tables.networks import Linear, Mlp
from maas_ray.tasks.tables.spec import TableSpec
from maas_ray.tasks.tables.task import TableTask
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch


class TabularClassificationSpec(TableSpec, SummedTaskSpec):
    """`task: {type: tabular-classification, target: species}`"""

    type: Literal["tabular-classification"] = "tabular-classification"
    """Which task."""

    def parse_target(self, target: Any) -> str | None:
        try:
            return label(target) or None
        except InvalidError as error:
            raise InvalidError(error.code, f"column {self.target!r}: {error}") from error

    def totals(self) -> Names:
        return Names("target")

    def fit_sample(self, rows: Iterable[Row]) -> TableFeatures:
        return fit_features(self, rows)

    def fitted(self, sample: TableFeatures, totals: Names) -> "TabularClassification":
        return TabularClassification(self, sample, fit_labels(totals.names["target"]))


class TabularClassification(TableTask, Classifying):
    """A fitted `tabular-classification` task."""

    spec: TabularClassificationSpec
    spec_type = TabularClassificationSpec
    networks = (Linear, Mlp)
    headline = ("f1", "accuracy", "roc_auc", "loss")

    def __init__(self, spec: TabularClassificationSpec, features: TableFeatures, labels: list[str]) -> None:
        super().__init__(spec, features)
        self._labels = labels

    @property
    def labels(self) -> list[str]:
        return self._labels

    @property
    def outputs_of_network(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> dict[str, Column]:
        return {**super().stored, "label": Column("int64")}

    def encode_target(self, targets: list[Any]) -> dict[str, np.ndarray]:
        return {"label": self.label_ids({"label": target} for target in targets)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        return [self.label_trait(encoded["label"]), *super().traits(rows, encoded)]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return super().describe(stored) | {self.spec.target: self.labels[int(stored["label"])]}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return self.features.document() | {"labels": self.labels}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TabularClassification":
        columns = {name: value for name, value in state.items() if name != "labels"}
        return cls(spec, TableFeatures.parse(columns, source=f"{directory}: features"), list(state["labels"]))

    def logits(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        return self.network_outputs(model, batch)

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A tensor for each column, [n] → `label` (names, [n]) and `scores` (probabilities, float32 [n, labels])."""
        return self.answered(self.network_answers(model, inputs))
