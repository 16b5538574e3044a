"""`outliers`: numbers of a table that lie far from the others, by fences that are fitted on the training split."""

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, changed, named
from maas_ray.data.cleaning.statistics import Mean, Numbers, gathered, is_missing, number_in
from maas_ray.errors import DataError
from maas_ray.tasks.rows import Row

# Tukey (1977), "Exploratory Data Analysis"; three standard deviations; Iglewicz and Hoaglin (1993), "How to Detect and
# Handle Outliers", whose modified z-score is 0.6745 (x - median) / MAD.
_THRESHOLDS = {"iqr": 1.5, "zscore": 3.0, "mad": 3.5}
_NORMAL = 0.6745


class Outliers(CleaningStep):
    """`{step: outliers, columns: [price], method: iqr, action: clip}`"""

    step: Literal["outliers"] = "outliers"
    """Which step."""
    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of numbers that are looked at. A missing value is no outlier."""
    method: Literal["iqr", "zscore", "mad"] = "iqr"
    """How far is too far: `threshold` interquartile ranges beyond the quartiles, standard deviations from the mean, or
    modified z-scores from the median."""
    threshold: float | None = Field(None, gt=0)
    """None: 1.5 for iqr, 3 for zscore, 3.5 for mad."""
    action: Literal["drop", "clip"] = "drop"
    """Whether such a row is dropped, in whatever split, or the value becomes that of the fence (winsorising)."""
    fitted: dict[str, tuple[float, float]] | None = None
    """By column, the lower and the upper fence. Written by fitting; None: it has not been fitted."""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns

    @property
    def fits(self) -> bool:
        return True

    def fit(self, rows: Iterable[Row]) -> Self:
        """Fill the fences in. `iqr` and `mad` take 8 bytes a row and column."""
        statistics = {name: Mean() if self.method == "zscore" else Numbers() for name in self.columns}
        found = gathered(self.step, rows, statistics)
        return self.model_copy(update={"fitted": {name: self._fences(name, one) for name, one in found.items()}})

    def _fences(self, name: str, found: Mean | Numbers) -> tuple[float, float]:
        threshold = self.threshold or _THRESHOLDS[self.method]
        if isinstance(found, Mean):
            low = high = found.value
            reach = threshold * found.std
        elif self.method == "iqr":
            low, high = found.quantiles([0.25, 0.75])
            reach = threshold * (high - low)
        else:
            low = high = found.quantiles([0.5])[0]
            reach = threshold * found.deviation() / _NORMAL
        if not reach:
            raise DataError(
                f"outliers: too many values of column {name!r} are {low:g}; by {self.method} all others were outliers. "
                f"Leave it out{'' if self.method == 'zscore' else ', or take `method: zscore`'}."
            )
        return low - reach, high + reach

    def clean(self, row: Row, notes: Notes) -> Row:
        if self.fitted is None:
            raise RuntimeError("it has not been fitted")
        for name, (low, high) in self.fitted.items():
            content = named(row, name)
            if is_missing(content):
                continue
            try:
                number = number_in(content)
            except ValueError as error:
                raise ValueError(f"column {name!r} holds {error}") from error
            if low <= number <= high:
                continue
            if self.action == "drop":
                raise Dropped(f"{name} is an outlier")
            row = changed(row, name, low if number < low else high)
            notes[f"clipped {name}"] += 1
        return row
