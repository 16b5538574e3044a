"""`time-series-forecasting`: the next `horizon` values of a series, predicted from its last `context_length` values.

There are two layouts. In a table whose rows are steps, steps are joined by `series` in the order of `time`, and the end
of each series is held out (see `maas_ray.data.splits.series`). A row that holds lists is a whole series; its content
decides its split, which suits many short series. Either way no step is in two splits, so no window is either. A
held-out end that is shorter than context and horizon together gives no window; it is dropped and counted.

Covariates, like the target, are known up to the present. Future covariates are not supported.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from maas_ray.errors import DataError, InvalidError, RequestError
from maas_ray.spec import Spec
from maas_ray.tasks.cells import category, cell, number
from maas_ray.tasks.fitting import ExactMoments, SummedTaskSpec, Totals
from maas_ray.tasks.metrics import mean_loss, regression
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import AnswerRow, Column, OptionalTensor, RequestRow, Row, Steps, TensorSpec
from maas_ray.tasks.tables.networks import Recurrent
from maas_ray.tasks.tables.times import check_format, instant
from maas_ray.tasks.task import Outcomes, Task
from maas_ray.tasks.traits import Curve, Trait, lengths

if TYPE_CHECKING:
    import torch


class TimeSeriesForecastingSpec(SummedTaskSpec):
    """`task: {type: time-series-forecasting, target: sales, time: day, context_length: 28, horizon: 7}`"""

    type: Literal["time-series-forecasting"] = "time-series-forecasting"
    """Which task."""
    target: str = Field(min_length=1)
    """Column to predict: numbers, or lists of numbers."""
    covariates: tuple[str, ...] = ()
    """Further columns of numbers to predict from, known up to the present."""
    series: str | None = None
    """Column that tells series apart. None: all rows of a file are one series."""
    time: str | None = None
    """Column to order steps by: numbers, dates, or texts in ISO 8601. Times with UTC offsets are compared as instants.
    None: rows are in order."""
    time_format: str | None = None
    """Format of the texts in `time`, as for Python's `strptime`: '%d/%m/%Y %H:%M'. None: numbers or ISO 8601."""
    context_length: int = Field(ge=2)
    """Number of steps to predict from."""
    horizon: int = Field(ge=1)
    """Number of steps to predict."""
    stride: int = Field(1, ge=1)
    """Number of steps from one window to the next."""
    season: int = Field(1, ge=1)
    """Period of the series in steps, for the naive forecast of MASE. 1: the series is not periodic."""
    normalize: Literal["global", "context"] = "global"
    """Statistics to normalise by. global: mean and standard deviation of the training split. context: those of each
    context, for series that differ in level or drift."""

    @model_validator(mode="after")
    def _columns_differ(self) -> "TimeSeriesForecastingSpec":
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise InvalidError(
                "duplicate_column", f"target, covariates, series, time: {twice[0]!r} is named twice; keep one."
            )
        if self.time_format is not None:
            if self.time is None:
                raise InvalidError("time_missing", "time_format: is the format of `time`, which is not given.")
            check_format(self.time_format)
        if self.season >= self.context_length:
            raise InvalidError(
                "season_too_long",
                f"season ({self.season}) must be shorter than context_length ({self.context_length}).",
            )
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """The columns of values, the target first."""
        return (self.target, *self.covariates)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.channels, *(name for name in (self.series, self.time) if name))

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("values",)

    @property
    def steps(self) -> Steps:
        window = self.context_length + self.horizon
        return Steps(self.channels, self.series, self.time, window, self.stride, self.time_format)

    def parse_row(self, row: Row) -> Row | None:
        """`values` float64 [steps, channels], missing ones filled from before. None if a column is empty."""
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
                raise InvalidError("wrong_type", f"column {name!r} must hold a list, as {self.target!r} does")
            try:
                lists.append([number(cell(value)) for value in row[name]])
            except InvalidError as error:
                raise InvalidError(error.code, f"column {name!r}: {error}") from error
        order = self._order(row, len(lists[0]))
        if len({*map(len, lists)}) > 1:
            counts = " and ".join(f"{len(values)}" for values in lists)
            raise InvalidError("length_mismatch", f"the lists of a row have {counts} values; they must be equally long")
        return np.array(lists, np.float64).reshape(len(lists), -1).T[order]

    def _order(self, row: Row, steps: int) -> np.ndarray | slice:
        """The order of a row's steps in time, if it lists their times."""
        if self.time is None or not isinstance(times := row.get(self.time), (list, tuple)):
            return slice(None)
        try:
            instants = [instant(value, self.time_format) for value in times]
        except InvalidError as error:
            raise InvalidError(error.code, f"column {self.time!r} holds {error}") from error
        values = [when.value for when in instants if when is not None]
        if len(values) != steps or len({*values}) != steps or len({when.kind for when in instants if when}) > 1:
            raise InvalidError(
                "invalid_times", f"column {self.time!r} must list a time of one kind for each step, and none twice"
            )
        return np.array(sorted(range(steps), key=values.__getitem__), np.int64)

    def totals(self) -> "SeriesTotals":
        return SeriesTotals(len(self.channels))

    def fitted(self, sample: None, totals: "SeriesTotals") -> "TimeSeriesForecasting":
        if totals.longest < self.context_length + self.horizon:
            raise DataError(
                f"context_length plus horizon is {self.context_length + self.horizon} steps, but the longest series of "
                f"the training split has {totals.longest}.",
                code="series_too_short",
            )
        return TimeSeriesForecasting(self, SeriesFeatures(mean=totals.moments.mean, std=totals.moments.std))


class SeriesTotals(Totals):
    """The statistics of each channel over all steps, and the length of the longest series."""

    def __init__(self, channels: int) -> None:
        self.moments, self.longest = ExactMoments(channels), 0

    def add(self, row: Row) -> None:
        self.moments.add(row["values"])
        self.longest = max(self.longest, len(row["values"]))

    def merge(self, other: "SeriesTotals") -> None:
        self.moments.merge(other.moments)
        self.longest = max(self.longest, other.longest)


class SeriesFeatures(Spec):
    """Statistics of the training split."""

    mean: list[float]
    """Mean of each channel, in the user's unit."""
    std: list[float]
    """Standard deviation of each channel; 1 if all its values are equal."""


def filled(values: np.ndarray) -> np.ndarray:
    """Fill NaN in float64 [steps, channels] with the last known value, and before the first known value with that."""
    known = ~np.isnan(values)
    if known.all():
        return values
    steps = np.where(known, np.arange(len(values))[:, None], 0)
    steps = np.maximum(np.maximum.accumulate(steps, axis=0), known.argmax(0))
    return np.take_along_axis(values, steps, axis=0)


_Value = Annotated[float, Field(allow_inf_nan=False)] | None


class SeriesRow(RequestRow):
    """The last steps of a series."""

    values: Annotated[list[_Value | list[_Value]], Field(min_length=1)]
    """At least as many steps as the model's context, the newest last; earlier steps are ignored. A step is a number, or
    with covariates a list of the target and the covariates in their order. null is missing."""

    @classmethod
    def sample(cls, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
        """Zeros, as many as the model reads."""
        _, steps, channels = inputs[0].shape
        return {"values": [[0] * channels if channels > 1 else 0] * steps}


class SeriesForecast(AnswerRow):
    """The forecast of a series."""

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
                raise InvalidError(
                    "series_too_short", "a series, or the held-out end of one, is shorter than context_length + horizon"
                )
            windows = np.lib.stride_tricks.sliding_window_view(row["values"], length + horizon, axis=0)
            windows = windows[:: self.spec.stride]  # [windows, channels, steps]
            contexts.append(windows[:, :, :length].transpose(0, 2, 1))
            targets.append(windows[:, 0, length:])
        return {"context": np.concatenate(contexts), "target": np.concatenate(targets)}

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Lengths of the series that windows are cut from; the first target of each window."""
        steps = lengths("steps", (len(row["values"]) for row in rows))
        return [steps, Trait("target", self.spec.target, encoded["target"][:, 0])]

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A window: each channel of the context, and the target that follows."""
        channels = {name: Curve(stored["context"][:, index]) for index, name in enumerate(self.spec.channels)}
        return channels | {f"{self.spec.target}, next {self.spec.horizon}": Curve(stored["target"])}

    def save_state(self, directory: Path) -> dict[str, Any]:
        return self.features.document()

    @classmethod
    def load_state(cls, spec: Any, state: dict[str, Any], directory: Path) -> "TimeSeriesForecasting":
        return cls(spec, SeriesFeatures.parse(state, source=f"{directory}: features"))

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        """`context` float32 [B, steps, channels], normalised; `level` and `spread` float64 [B, 1] to undo it.

        If targets are known, also `target` float64 [B, horizon], and `naive` float64 [B], the mean error of the
        seasonal naive forecast within the context.
        """
        import torch

        context = batch["context"]
        if self.spec.normalize == "context":
            mean, std = context.mean(1, keepdims=True), context.std(1, keepdims=True)
            std = np.where(std > 1e-9 * np.abs(mean), std, 1.0)
        else:
            shape = (len(context), 1, len(self.spec.channels))
            mean, std = np.broadcast_to(self.features.mean, shape), np.broadcast_to(self.features.std, shape)
        tensors = {
            "context": ((context - mean) / std).astype(np.float32),
            "level": np.array(mean[:, :, 0]),
            "spread": np.array(std[:, :, 0]),
        }
        if "target" in batch:
            season, known = self.spec.season, context[:, :, 0]
            tensors["naive"] = np.abs(known[:, season:] - known[:, :-season]).mean(1)
            tensors["target"] = np.ascontiguousarray(batch["target"])
        return {name: torch.from_numpy(values) for name, values in tensors.items()}

    @staticmethod
    def _predicted(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, horizon], normalised."""
        predicted: torch.Tensor = model(context=batch["context"])
        return predicted.float()

    @staticmethod
    def _target(batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, horizon], normalised."""
        return ((batch["target"] - batch["level"]) / batch["spread"]).float()

    def loss(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        """Mean squared error of normalised values."""
        import torch.nn.functional as F

        return F.mse_loss(self._predicted(model, batch), self._target(batch))

    def outcomes(self, model: Forward, batch: dict[str, "torch.Tensor"]) -> Outcomes:
        predicted = self._predicted(model, batch)
        return {
            "loss": (predicted - self._target(batch)).double().square().mean(-1).cpu().numpy(),
            "target": batch["target"].cpu().numpy(),
            "prediction": (predicted.double() * batch["spread"] + batch["level"]).cpu().numpy(),
            "naive": batch["naive"].cpu().numpy(),
        }

    def metrics(self, outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss`, the metrics of `metrics.regression`, and `mase`.

        `mase` is the mean absolute scaled error of Hyndman and Koehler (2006), "Another look at measures of forecast
        accuracy": a window's mean error over the horizon, divided by the error of the seasonal naive forecast within
        the context. Windows whose context repeats exactly are excluded, since that error is zero.
        """
        metrics = {"loss": mean_loss(outcomes), **regression(outcomes)}
        errors = np.abs(outcomes["prediction"] - outcomes["target"]).mean(-1)
        defined = outcomes["naive"] > 0
        if defined.any():
            metrics["mase"] = float((errors[defined] / outcomes["naive"][defined]).mean())
        return metrics

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (OptionalTensor("values", "FP64", (-1, self.spec.context_length, len(self.spec.channels))),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("forecast", "FP64", (-1, self.spec.horizon)),)

    def to_inputs(self, row: SeriesRow) -> dict[str, Any]:
        length, names = self.spec.context_length, self.spec.channels
        steps = [step if isinstance(step, list) else [step] for step in row.values]
        wrong = next((index for index, step in enumerate(steps) if len(step) != len(names)), None)
        if wrong is not None:
            raise RequestError(
                f"This step has {len(steps[wrong])} values; a step has {len(names)}: {', '.join(names)}.",
                param=f"values[{wrong}]",
                code="invalid_value",
            )
        if len(steps) < length:
            raise RequestError(
                f"The series has {len(steps)} steps; this model needs the last {length}.",
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
            raise RequestError("values is null throughout a column.", param="values", code="invalid_value")
        batch = self.collate({"context": np.stack([filled(series) for series in values])})
        with torch.inference_mode():
            predicted = self._predicted(model, batch).double()
        return {"forecast": (predicted * batch["spread"] + batch["level"]).numpy()}
