"""Fitting as a sum over rows: workers add up the rows of a block, and the parts are merged.

    rows of a block ──Totals.add──▶ totals ──merge──▶ totals of all rows ──┐
    all rows in order ──fit_sample──▶ what needs rows in order ────────────┴──fitted──▶ Task

Totals are exact: integers, sets, maxima, and numbers as `ExactMoments`. So the result does not depend on how rows are
cut into blocks, nor on the order in which parts are merged.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, Self

import numpy as np

from maas_ray.tasks.rows import Row
from maas_ray.tasks.task import Task, TaskSpec


class Totals(ABC):
    """Statistics of rows that add up. They travel between processes."""

    @abstractmethod
    def add(self, row: Row) -> None:
        """Add a parsed row."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the rows that were added to other totals."""

    def detached(self) -> Self:
        """The totals without anything that only `add` needs, to be sent to `merge`."""
        return self


class SummedTaskSpec(TaskSpec, ABC):
    """A task that is fitted on totals of all training rows."""

    @abstractmethod
    def totals(self) -> Totals:
        """The totals of no rows."""

    def fit_sample(self, rows: Iterable[Row]) -> Any:
        """Fit whatever needs the rows in order, such as a tokenizer; reads no more of them than it needs."""
        return None

    @abstractmethod
    def fitted(self, sample: Any, totals: Any) -> Task:
        """The task that was fitted on a sample, see `fit_sample`, and on the totals of all rows."""

    def fit(self, rows: Iterable[Row]) -> Task:
        totals = self.totals()

        def added() -> Iterator[Row]:
            for row in rows:
                totals.add(row)
                yield row

        reading = added()
        sample = self.fit_sample(reading)
        for _ in reading:  # add the rows that the sample did not need
            pass
        return self.fitted(sample, totals)


class Names(Totals):
    """The distinct names in columns. A list holds several names."""

    def __init__(self, *columns: str) -> None:
        self.names: dict[str, set[str]] = {column: set() for column in columns}

    def add(self, row: Row) -> None:
        for column, names in self.names.items():
            value = row[column]
            names.update(value if isinstance(value, list) else (value,))

    def merge(self, other: "Names") -> None:
        for column, names in self.names.items():
            names.update(other.names[column])


class ExactMoments:
    """Count, mean, standard deviation, minimum and maximum of each column, from sums without rounding.

    A float64 is an integer of 53 bits times a power of two, so sums of numbers and of their squares are integers too,
    in units of the smallest power.

    Args:
        columns: number of columns.
    """

    _SHIFT = 1073  # the exponent of the smallest float64, by `frexp`, is -1073
    _UNIT = 1 << (_SHIFT + 53)

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._sums, self._squares = [0] * columns, [0] * columns
        self._min, self._max = np.full(columns, math.inf), np.full(columns, -math.inf)

    def add(self, values: np.ndarray) -> None:
        """Add finite rows [n, columns]."""
        mantissas, exponents = np.frexp(values)
        whole = (mantissas * 2.0**53).astype(np.int64)
        for column in range(values.shape[1]):
            for exponent in np.unique(exponents[:, column]).tolist():
                numbers = whole[exponents[:, column] == exponent, column].tolist()
                self._sums[column] += sum(numbers) << exponent + self._SHIFT
                self._squares[column] += sum(number * number for number in numbers) << 2 * (exponent + self._SHIFT)
        self.count += len(values)
        self._min = np.minimum(self._min, values.min(0, initial=math.inf))
        self._max = np.maximum(self._max, values.max(0, initial=-math.inf))

    def merge(self, other: "ExactMoments") -> None:
        """Add the rows that were added to other moments."""
        self.count += other.count
        self._sums = [one + more for one, more in zip(self._sums, other._sums, strict=True)]
        self._squares = [one + more for one, more in zip(self._squares, other._squares, strict=True)]
        self._min, self._max = np.minimum(self._min, other._min), np.maximum(self._max, other._max)

    @property
    def mean(self) -> list[float]:
        """The mean of each column, correctly rounded."""
        return [float(Fraction(total, self.count * self._UNIT)) for total in self._sums]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each column; 1 if all its values are equal."""
        spread = (self._max > self._min).tolist()
        return [
            root(Fraction(self.count * squares - total**2, (self.count * self._UNIT) ** 2)) if differ else 1.0
            for total, squares, differ in zip(self._sums, self._squares, spread, strict=True)
        ]


def root(square: Fraction) -> float:
    """The square root of a fraction, which may be too large or too small for a float."""
    with localcontext(prec=50):
        return float((Decimal(square.numerator) / Decimal(square.denominator)).sqrt())
