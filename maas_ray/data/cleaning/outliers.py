"""`outliers`: drops or clips numbers beyond fences that are fitted on the training split."""

from typing import Literal, Self

from pydantic import Field

from maas_ray.data.cleaning.base import Dropped, Notes, changed, named
from maas_ray.data.cleaning.base.statistics import ColumnTotals, Mean, Numbers, SummedStep, is_missing, number_in
from maas_ray.errors import DataError, InvalidError
from maas_ray.tasks.rows import Row

# Tukey (1977), "Exploratory Data Analysis"; three standard deviations; Iglewicz and Hoaglin (1993), "How to Detect and
# Handle Outliers", whose modified z-score is 0.6745 (x - median) / MAD.
_THRESHOLDS = {"iqr": 1.5, "zscore": 3.0, "mad": 3.5}
_NORMAL = 0.6745


class Outliers(SummedStep):
    """`{step: outliers, columns: [price], method: iqr, action: clip}`"""

    step: Literal["outliers"] = "outliers"
    """Name of the step."""
    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of numbers to check. A missing value is not an outlier."""
    method: Literal["iqr", "zscore", "mad"] = "iqr"
    """Unit of the threshold: interquartile ranges beyond the quartiles (`iqr`), standard deviations from the mean
    (`zscore`), or modified z-scores from the median (`mad`)."""
    threshold: float | None = Field(None, gt=0)
    """Distance of the fences, in units of the method. None: 1.5 for iqr, 3 for zscore, 3.5 for mad."""
    action: Literal["drop", "clip"] = "drop"
    """Outcome of an outlier: its row is dropped, in any split, or the value is set to the fence (winsorising)."""
    fitted: dict[str, tuple[float, float]] | None = None
    """Lower and upper fence, by column. Written by fitting. None: not fitted yet."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns

    @property
    def fits(self) -> bool:
        return True

    def totals(self) -> ColumnTotals:
        """`iqr` and `mad` take 8 bytes for each row and column."""
        return ColumnTotals(
            self.step, {name: Mean() if self.method == "zscore" else Numbers() for name in self.columns}
        )

    def with_totals(self, totals: ColumnTotals) -> Self:
        """The step with its fences."""
        fences = {name: self._fences(name, statistic) for name, statistic in totals.checked().items()}
        return self.model_copy(update={"fitted": fences})

    def _fences(self, name: str, statistic: Mean | Numbers) -> tuple[float, float]:
        threshold = self.threshold or _THRESHOLDS[self.method]
        if isinstance(statistic, Mean):
            low = high = statistic.value
            reach = threshold * statistic.std
        elif self.method == "iqr":
            low, high = statistic.quantiles([0.25, 0.75])
            reach = threshold * (high - low)
        else:
            low = high = statistic.quantiles([0.5])[0]
            reach = threshold * statistic.deviation() / _NORMAL
        if not reach:
            raise DataError(
                f"outliers: too many values of column {name!r} are {low:g}; with `method: {self.method}`, every other "
                f"value would be an outlier. Remove it from `columns`"
                f"{'' if self.method == 'zscore' else ', or use `method: zscore`'}.",
                code="no_spread",
            )
        return low - reach, high + reach

    def clean(self, row: Row, notes: Notes) -> Row:
        if self.fitted is None:
            raise RuntimeError("the step `outliers` has not been fitted")
        for name, (low, high) in self.fitted.items():
            content = named(row, name)
            if is_missing(content):
                continue
            try:
                number = number_in(content)
            except ValueError as error:
                raise InvalidError("not_a_number", f"column {name!r}: {error}") from error
            if low <= number <= high:
                continue
            if self.action == "drop":
                raise Dropped(f"{name} is an outlier")
            row = changed(row, name, low if number < low else high)
            notes[f"clipped {name}"] += 1
        return row
