"""`missing`: drops rows without a value, or fills the value in.

A value is missing if the tasks on tables take it for missing: null, NaN, blank text, and in CSV the texts that the
source lists under `missing`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import Dropped, Notes, changed, named, names_in, value
from maas_ray.data.cleaning.base.statistics import (
    ColumnTotals,
    Mean,
    Mode,
    Numbers,
    Statistic,
    SummedStep,
    is_missing,
)
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

FillValue = str | int | float
_FITTED: dict[str, Callable[[], Statistic]] = {"mean": Mean, "median": Numbers, "mode": Mode}


class Missing(SummedStep):
    """`{step: missing, columns: [age], strategy: median}`"""

    step: Literal["missing"] = "missing"
    """Name of the step."""
    columns: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns to check. None: all columns of the row; only with `strategy: drop`."""
    strategy: Literal["drop", "constant", "mean", "median", "mode"] = "drop"
    """Outcome of a row without a value: it is dropped, or gets `fill_value` or a statistic of the training split.
    `mode` is the most common value, the lowest one of several; `mean` and `median` need numbers."""
    fill_value: FillValue | None = None
    """The value to fill in, with `strategy: constant`."""
    fitted: dict[str, FillValue] | None = None
    """The value to fill in, by column. Written by fitting. None: not fitted yet."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.strategy == "constant") != (self.fill_value is not None):
            raise InvalidError(
                "fill_value_mismatch", "fill_value: belongs to `strategy: constant`; give both or neither."
            )
        if self.strategy != "drop" and self.columns is None:
            raise InvalidError(
                "columns_missing",
                "columns: list the columns to fill. (Filling all of them would also fill the target.)",
            )
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return self.columns or ()

    @property
    def fits(self) -> bool:
        return self.strategy in _FITTED

    def totals(self) -> ColumnTotals:
        """A median takes 8 bytes a row and column, a mode those of its distinct values."""
        return ColumnTotals(self.step, {name: _FITTED[self.strategy]() for name in self.columns or ()})

    def with_totals(self, totals: ColumnTotals) -> Self:
        fitted = {
            name: statistic.quantiles([0.5])[0] if isinstance(statistic, Numbers) else statistic.value
            for name, statistic in totals.checked().items()
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
            raise RuntimeError("the step `missing` has not been fitted")
        return self.fitted[name]
