"""Statistics of a column that are the same, to the last bit, in whatever order values come."""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from maas_ray.tasks.cells import cell, number

_MOST_DISTINCT = 1 << 20


def number_in(content: Any) -> float:
    """A value of a column as a number; NaN where there is none.

    Raises:
        ValueError: it is no number.
    """
    return number(cell(content))


class Mean:
    """Mean and standard deviation, of exact sums by denominators, as in Python's `statistics`: no value is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: Counter[int] = Counter()
        self._squares: Counter[int] = Counter()

    def add(self, value: float) -> None:
        over, under = value.as_integer_ratio()
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
        """The standard deviation of all of them, as a population."""
        squares = sum((Fraction(over, under) for under, over in self._squares.items()), Fraction()) / self.count
        return math.sqrt(squares - self._mean**2)


class Numbers:
    """Quantiles, of all values: 8 bytes each."""

    def __init__(self) -> None:
        self._values = array("d")

    @property
    def count(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(value + 0.0)  # there is one zero

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Quantiles, between two values interpolated linearly (Hyndman and Fan 1996, type 7)."""
        return [float(found) for found in np.quantile(np.frombuffer(self._values), shares)]

    def deviation(self) -> float:
        """The median of the absolute deviations from the median."""
        values = np.frombuffer(self._values)
        return float(np.median(np.abs(values - np.median(values))))


class Mode:
    """The commonest value, the least of several."""

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
        if len(self._counts) > _MOST_DISTINCT:
            raise ValueError(f"more than {_MOST_DISTINCT:,} different values, of which the commonest says nothing")

    @property
    def value(self) -> Any:
        """The mode."""
        return min(self._counts, key=lambda one: (-self._counts[one], isinstance(one, str), one))
