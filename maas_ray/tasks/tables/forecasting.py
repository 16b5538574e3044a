"""`time-series-forecasting`: the next `horizon` values of a series, from its last `context_length` ones.

Two layouts are read. In a table whose rows are steps, steps are joined by `series` in the order of `time`, and the end
of each series is held out, see `maas_ray.data.pipeline.series`. A row that holds lists is a whole series and falls
into a split as a whole, by its content: for many short series. Either way no step is in two splits, so windows
never straddle them.
The price: a held-out end shorter than context and horizon together gives no window, and is dropped, counted.

Covariates are known up to the present, as the target is; what will be known of the future is not taken.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from maas_ray.errors import DataError, RequestError
from maas_ray.spec import Spec
from maas_ray.tasks.metrics import mean_loss, regression
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import AnswerRow, Column, OptionalTensor, RequestRow, Row, Steps, TensorSpec
from maas_ray.tasks.tables.cells import category, cell, number
from maas_ray.tasks.tables.features import Moments
from maas_ray.tasks.tables.networks import Recurrent
from maas_ray.tasks.task import Outcomes, Task, TaskSpec
from maas_ray.tasks.traits import Curve, Trait, lengths

if TYPE_CHECKING:
    import torch


class TimeSeriesForecastingSpec(TaskSpec):
    """`task: {type: time-series-forecasting, target: sales, time: day, context_length: 28, horizon: 7}`"""

    type: Literal["time-series-forecasting"] = "time-series-forecasting"
    """Which task."""
    target: str = Field(min_length=1)
    """Column to foretell: a number, or a list of them."""
    covariates: tuple[str, ...] = ()
    """Columns of numbers that are known up to the present, and help."""
    series: str | None = None
    """Column that tells series apart. None: all rows of a file are one series."""
    time: str | None = None
    """Column by which steps are ordered: numbers, or dates as ISO 8601 writes them. None: they stand in order."""
    context_length: int = Field(ge=2)
    """Steps that a forecast is made from."""
    horizon: int = Field(ge=1)
    """Steps of a forecast."""
    stride: int = Field(1, ge=1)
    """Steps from one window to the next."""
    season: int = Field(1, ge=1)
    """Steps after which the series repeats itself; what MASE's naive forecast goes by. 1: it does not."""
    normalize: Literal["global", "context"] = "global"
    """What values are normalised by: mean and standard deviation of the training split, or of each context by itself,
    where series differ much in level or drift."""

    @model_validator(mode="after")
    def _columns_differ(self) -> "TimeSeriesForecastingSpec":
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"target, covariates, series, time: {twice[0]!r} stands twice; keep one.")
        if self.season >= self.context_length:
            raise ValueError(
                f"season ({self.season}) must be shorter than context_length ({self.context_length}); lengthen that."
            )
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """The columns that are values, the target first."""
        return (self.target, *self.covariates)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.channels, *(name for name in (self.series, self.time) if name))

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("values",)

    @property
    def steps(self) -> Steps:
        return Steps(self.channels, self.series, self.time, self.context_length + self.horizon, self.stride)

    def parse_row(self, row: Row) -> Row | None:
        """`values` float64 [steps, channels]; a missing one is the one before it. None where a column holds nothing."""
        if "values" not in row:
            name = category(cell(row[self.series])) if self.series else ""
            row = {"series": name, "start": 0, "values": self._of_lists(row)}
        if not len(row["values"]) or np.isnan(row["values"]).all(0).any():
            return None
        return row | {"values": filled(row["values"])}

    def _of_lists(self, row: Row) -> np.ndarray:
        lists = []
        for name in self.channels:
            if not isinstance(row[name], (list, tuple)):
                raise ValueError(f"column {name!r} holds no list, where {self.target!r} does")
            try:
                lists.append([number(cell(value)) for value in row[name]])
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from error
        if len({*map(len, lists)}) > 1:
            found = " and ".join(f"{len(values)}" for values in lists)
            raise ValueError(f"lists of {found} values in one row; they are to be of one length")
        return np.array(lists, np.float64).reshape(len(lists), -1).T

    def fit(self, rows: Iterable[Row]) -> "TimeSeriesForecasting":
        """Mean and standard deviation of each channel."""
        moments, longest = Moments(len(self.channels)), 0
        for row in rows:
            moments.add(row["values"])
            longest = max(longest, len(row["values"]))
        if longest < self.context_length + self.horizon:
            raise DataError(
                f"context_length and horizon take {self.context_length + self.horizon} steps together, but the longest "
                f"series of the training split has {longest}."
            )
        return TimeSeriesForecasting(self, SeriesFeatures(mean=moments.mean.tolist(), std=moments.std.tolist()))


class SeriesFeatures(Spec):
    """What was fitted on the training split."""

    mean: list[float]
    """Of each channel, in the user's unit."""
    std: list[float]
    """Standard deviation of each; 1 where all values are the same."""


def filled(values: np.ndarray) -> np.ndarray:
    """Float64 [steps, channels] with the last known value in place of NaN; before the first known one, with that."""
    known = ~np.isnan(values)
    if known.all():
        return values
    places = np.where(known, np.arange(len(values))[:, None], 0)
    places = np.maximum(np.maximum.accumulate(places, axis=0), known.argmax(0))
    return np.take_along_axis(values, places, axis=0)


_Value = Annotated[float, Field(allow_inf_nan=False)] | None


class SeriesRow(RequestRow):
    """The last steps of a series."""

    values: Annotated[list[_Value | list[_Value]], Field(min_length=1)]
    """At least as many steps as the model's context, the newest last; of more, the last ones count. A step is a number;
    with covariates, it is a list: the target, and the covariates in their order. null is missing."""


class SeriesForecast(AnswerRow):
    """What follows."""

    forecast: list[float]
    """The target at each of the next steps."""


class TimeSeriesForecasting(Task):
    """A fitted `time-series-forecasting` task. A stored row is a window, in the user's unit."""

    spec: TimeSeriesForecastingSpec
    spec_type = TimeSeriesForecastingSpec
    networks = (Recurrent,)
    unit = "rows"
    kind = "predict"
    headline = ("mase", "mae", "r2", "loss")
    request, answer = SeriesRow, SeriesForecast

    def __init__(self, spec: TimeSeriesForecastingSpec, features: SeriesFeatures) -> None:
        super().__init__(spec)
        self.features = features

    @property
    def stored(self) -> dict[str, Column]:
        return {
            "context": Column("float64", (self.spec.context_length, len(self.spec.channels))),
            "target": Column("float64", (self.spec.horizon,)),
        }

    @property
    def growth(self) -> float:
        return (self.spec.context_length + self.spec.horizon) / self.spec.stride

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        """Every window of each series."""
        length, horizon = self.spec.context_length, self.spec.horizon
        contexts, targets = [], []
        for row in rows:
            if len(row["values"]) < length + horizon:
                raise ValueError("too short a series, or held-out end of one, for context_length and horizon")
            windows = np.lib.stride_tricks.sliding_window_view(row["values"], length + horizon, axis=0)
            windows = windows[:: self.spec.stride]  # [windows, channels, steps]
            contexts.append(windows[:, :, :length].transpose(0, 2, 1))
            targets.append(windows[:, 0, length:])
        return {"context": np.concatenate(contexts), "target": np.concatenate(targets)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths of the stretches that windows are cut from; the first target of each window."""
        steps = lengths("steps", (len(row["values"]) for row in rows))
        return [steps, Trait("target", self.spec.target, encoded["target"][:, 0])]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A window: each channel of the context, and the target behind it."""
        channels = {name: Curve(stored["context"][:, place]) for place, name in enumerate(self.spec.channels)}
        return channels | {f"{self.spec.target}, next {self.spec.horizon}": Curve(stored["target"])}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return self.features.document()

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TimeSeriesForecasting":
        return cls(spec, SeriesFeatures.parse(state, source=f"{directory}: features"))

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """`context` float32 [B, steps, channels], normalised; `level` and `spread` float64 [B, 1] take the target
        back to the user's unit. Where targets are known: `target` float64 [B, horizon], and `naive` float64 [B], the
        mean error of the seasonal naive forecast within the context.
        """
        import torch

        context = batch["context"]
        if self.spec.normalize == "context":
            mean, std = context.mean(1, keepdims=True), context.std(1, keepdims=True)
            std = np.where(std > 1e-9 * np.abs(mean), std, 1.0)
        else:
            shape = (len(context), 1, len(self.spec.channels))
            mean, std = np.broadcast_to(self.features.mean, shape), np.broadcast_to(self.features.std, shape)
        found = {
            "context": ((context - mean) / std).astype(np.float32),
            "level": np.array(mean[:, :, 0]),
            "spread": np.array(std[:, :, 0]),
        }
        if "target" in batch:
            season, known = self.spec.season, context[:, :, 0]
            found["naive"] = np.abs(known[:, season:] - known[:, :-season]).mean(1)
            found["target"] = np.ascontiguousarray(batch["target"])
        return {name: torch.from_numpy(values) for name, values in found.items()}

    @staticmethod
    def _said(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, horizon], normalised."""
        said: torch.Tensor = model(context=batch["context"])
        return said.float()

    @staticmethod
    def _target(batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, horizon], normalised."""
        return ((batch["target"] - batch["level"]) / batch["spread"]).float()

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Mean squared error of normalised values."""
        import torch.nn.functional as F

        return F.mse_loss(self._said(model, batch), self._target(batch))

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        said = self._said(model, batch)
        return {
            "loss": (said - self._target(batch)).double().square().mean(-1).cpu().numpy(),
            "target": batch["target"].cpu().numpy(),
            "prediction": (said.double() * batch["spread"] + batch["level"]).cpu().numpy(),
            "naive": batch["naive"].cpu().numpy(),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss`, those of `metrics.regression`, and `mase`.

        The mean absolute scaled error of Hyndman and Koehler (2006), "Another look at measures of forecast accuracy": a
        window's mean error over the horizon, in units of the seasonal naive forecast's, one season ahead within the
        context. Windows whose context repeats itself exactly have no such unit, and are left out.
        """
        found = {"loss": mean_loss(outcomes), **regression(outcomes)}
        errors = np.abs(outcomes["prediction"] - outcomes["target"]).mean(-1)
        defined = outcomes["naive"] > 0
        if defined.any():
            found["mase"] = float((errors[defined] / outcomes["naive"][defined]).mean())
        return found

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (OptionalTensor("values", "FP64", (-1, self.spec.context_length, len(self.spec.channels))),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "FP64", (-1, self.spec.horizon)),)

    def to_inputs(self, row: SeriesRow) -> dict[str, Any]:
        length, names = self.spec.context_length, self.spec.channels
        steps = [step if isinstance(step, list) else [step] for step in row.values]
        wrong = next((place for place, step in enumerate(steps) if len(step) != len(names)), None)
        if wrong is not None:
            raise RequestError(
                f"a step of {len(steps[wrong])} values; here it has {len(names)}: {', '.join(names)}.",
                param=f"values[{wrong}]",
                code="invalid_value",
            )
        if len(steps) < length:
            raise RequestError(
                f"{len(steps)} steps; this model needs the last {length}.",
                param="values",
                code="invalid_value",
            )
        return {"values": np.array(steps[-length:], np.float64)}  # None becomes NaN

    def to_answer(self, outputs: Mapping[str, Any]) -> SeriesForecast:
        return SeriesForecast(forecast=outputs["forecast"].tolist())

    def predict(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`values` float64 [n, context_length, channels], NaN where missing → `forecast` float64 [n, horizon]."""
        import torch

        values = inputs["values"]
        if np.isinf(values).any():
            raise RequestError("values holds a number that is not finite.", param="values", code="invalid_value")
        if np.isnan(values).all(1).any():
            raise RequestError("values holds nothing of a column.", param="values", code="invalid_value")
        batch = self.collate({"context": np.stack([filled(one) for one in values])})
        with torch.inference_mode():
            said = self._said(model, batch).double()
        return {"forecast": (said * batch["spread"] + batch["level"]).numpy()}
