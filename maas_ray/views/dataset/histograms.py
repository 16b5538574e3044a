"""Histograms that a person can read: a few bins with round edges."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from maas_ray.data.profile import Numbers
from maas_ray.views.dataset.escape import number

_MAX_BARS = 14
_WIDE = 30  # from this ratio of the largest to the smallest number, bins grow with the numbers


@dataclass(frozen=True)
class Bar:
    """The count of numbers in [low, high). The last bar includes `high`."""

    low: float
    high: float
    count: int

    @property
    def name(self) -> str:
        """The range in words, as in `100 to 200`."""
        return number(self.low) if self.low == self.high else f"{number(self.low)} to {number(self.high)}"


def edges(some: list[Numbers]) -> list[float]:
    """The edges of bars that hold the numbers of several splits."""
    filled = [one for one in some if one.count]
    if not filled:
        return []
    low, high = min(one.least for one in filled), max(one.most for one in filled)
    if low == high:
        return [low, high]
    lower = min(one.quantile(0.05) for one in filled)
    if low > 0 and high / max(lower, low) > _WIDE:
        return _growing(max(low, 1e-299), high)
    return _even(low, high, all(one.whole for one in filled))


def bars(some: Numbers, ends: list[float]) -> list[Bar]:
    """The bars of a split. No bin of its profile straddles an edge, unless all numbers are close together."""
    counts = np.zeros(max(1, len(ends) - 1), np.int64)
    for low, _, count in some.ordered():
        counts[min(max(int(np.searchsorted(ends, low, side="right")) - 1, 0), len(counts) - 1)] += count
    return [Bar(low, high, count) for (low, high), count in zip(pairwise(ends), counts.tolist(), strict=True)]


def _growing(low: float, high: float) -> list[float]:
    """Edges at 1, 2, 5, 10, …, or at powers of ten if the numbers span many of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    chosen: list[float] = []
    for leading, stride in (((1, 2, 5), 1), *(((1,), stride) for stride in (1, 2, 5, 10, 20, 50))):
        powers = range(first - first % stride, last + stride, stride)
        ends = [float(f"{digit}e{power}") for power in powers for digit in leading]
        below = max(end for end in ends if end <= low)
        above = min(end for end in ends if end > high)
        chosen = [end for end in ends if below <= end <= above]
        if len(chosen) <= _MAX_BARS:
            break
    return chosen


def _even(low: float, high: float, whole: bool) -> list[float]:
    """Evenly spaced edges, at 1, 2 or 5 times a power of ten that is not finer than the bins of a profile."""
    finest = math.floor(math.log10(max(abs(low), abs(high)))) - 1
    finest = max(finest, 0) if whole else finest
    # Divided before the subtraction, because the difference of two floats can overflow.
    width = max(high / _MAX_BARS - low / _MAX_BARS, 1e-299)
    power = max(finest, math.floor(math.log10(width)))
    while True:
        for digit in (1, 2, 5):
            width = float(f"{digit}e{power}")
            start, end = math.floor(low / width), math.floor(high / width) + 1
            if end - start <= _MAX_BARS:
                # Built from decimals, because 3 × 0.1 is not 0.3.
                return [float(f"{place * digit}e{power}") for place in range(start, end + 1)]
        power += 1
