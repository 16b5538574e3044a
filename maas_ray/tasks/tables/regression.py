"""`tabular-regression`: a number for a row of a table.

The network learns the target normalised by its mean and standard deviation in the training split. Answers and metrics
are in the user's unit.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maas_ray.errors import InvalidError
from maas_ray.spec import Spec
from maas_ray.tasks.cells import cell_of, number
from maas_ray.tasks.metrics import mean_loss, regression
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import AnswerRow, Column, Row, TensorSpec
from maas_ray.tasks.tables.features import Moments, TableFeatures, fit_features
from maas_ray.tasks.tables.networks import Linear, Mlp
from maas_ray.tasks.tables.spec import TableSpec
from maas_ray.tasks.tables.task import TableTask
from maas_ray.tasks.task import Outcomes
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch

_BATCH = 1024


class TabularRegressionSpec(TableSpec):
    """`task: {type: tabular-regression, target: price}`"""

    type: Literal["tabular-regression"] = "tabular-regression"
    """Which task."""

    def parse_target(self, target: Any) -> float | None:
        value = cell_of(self.target, target)
        try:
            return None if value is None else number(value)
        except InvalidError as error:
            raise InvalidError(error.code, f"the target {self.target!r} must be a number: {error}") from error

    def fit(self, rows: Iterable[Row]) -> "TabularRegression":
        moments, targets = Moments(1), array("d")

        def watched() -> Iterator[Row]:
            for row in rows:
                targets.append(row["target"])
                if len(targets) == _BATCH:
                    count()
                yield row

        def count() -> None:
            moments.add(np.array(targets).reshape(-1, 1))
            del targets[:]

        features = fit_features(self, watched())  # reads `fit_rows` rows at most
        count()
        target = TargetScale(mean=float(moments.mean[0]), std=float(moments.std[0]))
        return TabularRegression(self, features, target)


class TargetScale(Spec):
    """Statistics of the target in the training split."""

    mean: float
    """Mean, in the user's unit."""
    std: float
    """Standard deviation, in the user's unit; 1 if all targets are equal."""


class TableNumber(AnswerRow):
    """The prediction for a row."""

    prediction: float
    """Predicted target, in the unit of the training data."""


class TabularRegression(TableTask):
    """A fitted `tabular-regression` task."""

    spec: TabularRegressionSpec
    spec_type = TabularRegressionSpec
    networks = (Linear, Mlp)
    headline = ("r2", "mae", "mse", "loss")
    answer = TableNumber
    outputs_of_network = 1

    def __init__(self, spec: TabularRegressionSpec, features: TableFeatures, target: TargetScale) -> None:
        super().__init__(spec, features)
        self.target = target

    @property
    def stored(self) -> dict[str, Column]:
        return {**super().stored, "target": Column("float64")}

    def encode_target(self, targets: list[Any]) -> dict[str, np.ndarray]:
        return {"target": np.array(targets, np.float64)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        return [Trait("target", self.spec.target, encoded["target"]), *super().traits(rows, encoded)]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return super().describe(stored) | {self.spec.target: float(stored["target"])}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return self.features.document() | {"target": self.target.document()}

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TabularRegression":
        columns = {name: value for name, value in state.items() if name != "target"}
        source = f"{directory}: features"
        return cls(spec, TableFeatures.parse(columns, source=source), TargetScale.parse(state["target"], source=source))

    def _errors(self, model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "tuple[torch.Tensor, torch.Tensor]":
        """The network's outputs and the normalised targets; fp32 [B] each."""
        target = (batch["target"].double() - self.target.mean) / self.target.std
        return self.network_outputs(model, batch).squeeze(-1), target.float()

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Mean squared error, in standard deviations of the target."""
        import torch.nn.functional as F

        return F.mse_loss(*self._errors(model, batch))

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        output, target = self._errors(model, batch)
        return {
            "loss": (output - target).double().square().cpu().numpy(),
            "target": batch["target"].double().cpu().numpy(),
            "prediction": output.double().cpu().numpy() * self.target.std + self.target.mean,
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss`, and the metrics of `metrics.regression` in the user's unit."""
        return {"loss": mean_loss(outcomes), **regression(outcomes)}

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("prediction", "FP64", (-1,)),)

    def to_answer(self, outputs: Mapping[str, Any]) -> TableNumber:
        return TableNumber(prediction=float(outputs["prediction"]))

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A tensor for each column, [n] → `prediction` float64 [n]."""
        output = self.network_answers(model, inputs).squeeze(-1)
        return {"prediction": output.double().numpy() * self.target.std + self.target.mean}
