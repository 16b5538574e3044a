"""Statistics of a column that are equal to the last bit in whatever order values come."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from maas_ray.data.cleaning.base.step import named
from maas_ray.errors import DataError, InvalidError
from maas_ray.tasks.cells import cell, number
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
        variance = squares - self._mean**2
        with localcontext(prec=50):  # a square may be too large for a float
            return float((Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt())


class Numbers:
    """Quantiles of all values, at 8 bytes a value."""

    def __init__(self) -> None:
        self._values = array("d")

    @property
    def count(self) -> int:
        return len(self._values)

    def add(self, content: Any) -> None:
        self._values.append(number_in(content) + 0.0)  # turns -0.0 into 0.0

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
        if len(self._counts) > _MAX_DISTINCT:
            raise InvalidError("too_many_values", f"more than {_MAX_DISTINCT:,} different values; a mode says nothing")

    @property
    def value(self) -> Any:
        """The mode."""
        return min(self._counts, key=lambda one: (-self._counts[one], isinstance(one, str), one))


Statistic = Mean | Numbers | Mode
Kind = TypeVar("Kind", bound=Statistic)


def gathered(step: str, rows: Iterable[Row], statistics: dict[str, Kind]) -> dict[str, Kind]:
    """Statistics of columns, filled with the values of rows.

    Raises:
        DataError: a column is missing or empty, or holds a value of another kind.
    """
    for row in rows:
        for name, statistic in statistics.items():
            try:
                content = named(row, name)
                if not is_missing(content):
                    statistic.add(content)
            except ValueError as error:
                raise DataError(
                    f"{step}: column {name!r} cannot be fitted: {error}. Remove it from `columns`.",
                    code=getattr(error, "code", "not_a_number"),
                ) from error
    if empty := [name for name, statistic in statistics.items() if not statistic.count]:
        raise DataError(
            f"{step}: column {empty[0]!r} is empty in the training split; remove it from `columns`.",
            code="column_empty",
        )
    return statistics
