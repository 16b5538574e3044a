"""`missing`: rows without a value, or what stands in its place.

Missing is what the tasks on tables take for it: null, NaN, blank text, and in CSV what the source calls `missing`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, changed, named, names_in, value
from maas_ray.data.cleaning.statistics import Mean, Mode, Numbers, Statistic, gathered, is_missing
from maas_ray.tasks.rows import Row

FillValue = str | int | float
_FITTED: dict[str, Callable[[], Statistic]] = {"mean": Mean, "median": Numbers, "mode": Mode}


class Missing(CleaningStep):
    """`{step: missing, columns: [age], strategy: median}`"""

    step: Literal["missing"] = "missing"
    """Which step."""
    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns that are looked at. None, with `drop` only: all that the row has."""
    strategy: Literal["drop", "constant", "mean", "median", "mode"] = "drop"
    """What becomes of a row without a value: it is dropped, or gets `fill_value`, or a statistic of the column in
    training. `mode` is the commonest value, the least of several; the other two are of numbers."""
    fill_value: FillValue | None = None
    """With `constant`: what stands in its place."""
    fitted: dict[str, FillValue] | None = None
    """By column, what stands in its place. Written by fitting; None: it has not been fitted."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.strategy == "constant") != (self.fill_value is not None):
            raise ValueError("fill_value: belongs to `strategy: constant`; give both or neither.")
        if self.strategy != "drop" and self.columns is None:
            raise ValueError(
                "columns: name those to fill; among all of them is what the task learns, which nobody should invent."
            )
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns or ()

    @property
    def fits(self) -> bool:
        return self.strategy in _FITTED

    def fit(self, rows: Iterable[Row]) -> Self:
        """Fill the statistics in. The median takes 8 bytes a row and column, the mode those of its different values."""
        if not self.fits:
            return self
        found = gathered(self.step, rows, {name: _FITTED[self.strategy]() for name in self.columns or ()})
        fitted = {
            name: statistic.quantiles([0.5])[0] if isinstance(statistic, Numbers) else statistic.value
            for name, statistic in found.items()
        }
        return self.model_copy(update={"fitted": fitted})

    def clean(self, row: Row, notes: Notes) -> Row:
        if self.columns is None:
            contents: Sequence[tuple[str, Any]] = [(name, value(row, name)) for name in names_in(row)]
        else:
            contents = [(name, named(row, name)) for name in self.columns]
        for name, content in contents:
            if not is_missing(content):
                continue
            if self.strategy == "drop":
                raise Dropped(f"no {name}")
            row = changed(row, name, self._filling(name))
            notes[f"filled {name}"] += 1
        return row

    def _filling(self, name: str) -> FillValue:
        if self.fill_value is not None:
            return self.fill_value
        if self.fitted is None:
            raise RuntimeError("it has not been fitted")
        return self.fitted[name]
