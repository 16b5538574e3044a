"""Statistics of columns that are equal to the last bit in whatever order values come, and steps fitted on them."""

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Self

import numpy as np

from maas_ray.data.cleaning.base.step import CleaningStep, named
from maas_ray.errors import DataError, InvalidError
from maas_ray.tasks.cells import cell, number
from maas_ray.tasks.fitting import Totals, root
from maas_ray.tasks.rows import Row

_MAX_DISTINCT = 1 << 20


def number_in(content: Any) -> float:
    """A value of a column as a number; NaN if it is missing.

    Raises:
        ValueError: it is not a number.
    """
    return number(cell(content))


def is_missing(content: Any) -> bool:
    """True if a column holds no value."""
    if content is None:
        return True
    if isinstance(content, bytes | list | tuple | dict):
        return len(content) == 0
    try:
        return cell(content) is None
    except ValueError:
        return False


class Mean:
    """Mean and standard deviation from exact sums by denominator, as in Python's `statistics`; no value is stored."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: Counter[int] = Counter()
        self._squares: Counter[int] = Counter()

    def add(self, content: Any) -> None:
        over, under = number_in(content).as_integer_ratio()
        self.count += 1
        self._sums[under] += over
        self._squares[under * under] += over * over

    def merge(self, other: "Mean") -> None:
        self.count += other.count
        self._sums.update(other._sums)
        self._squares.update(other._squares)

    @property
    def _mean(self) -> Fraction:
        return sum((Fraction(over, under) for under, over in self._sums.items()), Fraction()) / self.count

    @property
    def value(self) -> float:
        """The mean."""
        return float(self._mean)

    @property
    def std(self) -> float:
        """The standard deviation of the values as a population."""
        squares = sum((Fraction(over, under) for under, over in self._squares.items()), Fraction()) / self.count
        return root(squares - self._mean**2)


class Numbers:
    """Quantiles of all values, at 8 bytes a value."""

    def __init__(self) -> None:
        self._values = array("d")

    @property
    def count(self) -> int:
        return len(self._values)

    def add(self, content: Any) -> None:
        self._values.append(number_in(content) + 0.0)  # turns -0.0 into 0.0

    def merge(self, other: "Numbers") -> None:
        self._values.extend(other._values)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Quantiles, with linear interpolation between two values (Hyndman and Fan 1996, type 7)."""
        return [float(quantile) for quantile in np.quantile(np.frombuffer(self._values), shares)]

    def deviation(self) -> float:
        """The median of the absolute deviations from the median."""
        values = np.frombuffer(self._values)
        return float(np.median(np.abs(values - np.median(values))))


class Mode:
    """The most common value; the lowest one if several are equally common."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()

    @property
    def count(self) -> int:
        return self._counts.total()

    def add(self, content: Any) -> None:
        value = cell(content)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1 and 1.0 are one value, whichever comes first
        self._counts[value] += 1
        self._check()

    def merge(self, other: "Mode") -> None:
        self._counts.update(other._counts)
        self._check()

    def _check(self) -> None:
        if len(self._counts) > _MAX_DISTINCT:
            raise InvalidError("too_many_values", f"more than {_MAX_DISTINCT:,} different values; a mode says nothing")

    @property
    def value(self) -> Any:
        """The mode."""
        return min(self._counts, key=lambda one: (-self._counts[one], isinstance(one, str), one))


Statistic = Mean | Numbers | Mode


class ColumnTotals(Totals):
    """Statistics of columns of raw rows. Missing values do not count.

    Args:
        step: name of the step that needs them.
        statistics: statistics without values, by column.
    """

    def __init__(self, step: str, statistics: dict[str, Any]) -> None:
        self._step, self._statistics = step, statistics
        self._error: DataError | None = None  # the first one, so that the order of blocks does not decide

    def add(self, row: Row) -> None:
        for name, statistic in self._statistics.items():
            if self._error is not None:
                return
            try:
                content = named(row, name)
                if not is_missing(content):
                    statistic.add(content)
            except ValueError as error:
                self._fail(name, error)

    def merge(self, other: "ColumnTotals") -> None:
        self._error = self._error or other._error
        for name, statistic in self._statistics.items():
            if self._error is not None:
                return
            try:
                statistic.merge(other._statistics[name])
            except ValueError as error:
                self._fail(name, error)

    def _fail(self, name: str, error: ValueError) -> None:
        self._error = DataError(
            f"{self._step}: column {name!r} cannot be fitted: {error}. Remove it from `columns`.",
            code=getattr(error, "code", "not_a_number"),
        )

    def checked(self) -> dict[str, Any]:
        """The statistics by column.

        Raises:
            DataError: a column is missing or empty, or holds a value of another kind.
        """
        if self._error is not None:
            raise self._error
        if empty := [name for name, statistic in self._statistics.items() if not statistic.count]:
            raise DataError(
                f"{self._step}: column {empty[0]!r} is empty in the training split; remove it from `columns`.",
                code="column_empty",
            )
        return self._statistics


class SummedStep(CleaningStep, ABC):
    """A cleaning step that is fitted on statistics of columns."""

    @abstractmethod
    def totals(self) -> ColumnTotals:
        """The statistics of no rows."""

    @abstractmethod
    def with_totals(self, totals: ColumnTotals) -> Self:
        """The step, fitted on the statistics of all training rows."""

    def fit(self, rows: Iterable[Row]) -> Self:
        if not self.fits:
            return self
        totals = self.totals()
        for row in rows:
            totals.add(row)
        return self.with_totals(totals)
