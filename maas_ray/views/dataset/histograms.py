"""Numbers in bins as a person can read them: few bins, whose ends are round."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from maas_ray.data.profile import Numbers
from maas_ray.views.dataset.escape import number

_MOST_BARS = 14
_WIDE = 30  # times as much as the low end: then bins grow with the numbers


@dataclass(frozen=True)
class Bar:
    """How many numbers are in [low, high); in the last bar `high` too."""

    low: float
    high: float
    count: int

    @property
    def name(self) -> str:
        """Such as `100 to 200`."""
        return number(self.low) if self.low == self.high else f"{number(self.low)} to {number(self.high)}"


def edges(some: list[Numbers]) -> list[float]:
    """Ends of bars that hold all of several splits' numbers."""
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
    """A split's numbers between those ends, which no bin of a profile straddles but where all lie close together."""
    counts = np.zeros(max(1, len(ends) - 1), np.int64)
    for low, _, count in some.ordered():
        counts[min(max(int(np.searchsorted(ends, low, side="right")) - 1, 0), len(counts) - 1)] += count
    return [Bar(low, high, count) for (low, high), count in zip(pairwise(ends), counts.tolist(), strict=True)]


def _growing(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, …; of numbers that differ by many powers of ten, these powers or some of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    found: list[float] = []
    for leading, stride in (((1, 2, 5), 1), *(((1,), stride) for stride in (1, 2, 5, 10, 20, 50))):
        powers = range(first - first % stride, last + stride, stride)
        ends = [float(f"{digit}e{power}") for power in powers for digit in leading]
        below = max(end for end in ends if end <= low)
        above = min(end for end in ends if end > high)
        found = [end for end in ends if below <= end <= above]
        if len(found) <= _MOST_BARS:
            break
    return found


def _even(low: float, high: float, whole: bool) -> list[float]:
    """Equally far apart, by 1, 2 or 5 times a power of ten that is no finer than the bins of a profile."""
    finest = math.floor(math.log10(max(abs(low), abs(high)))) - 1
    finest = max(finest, 0) if whole else finest
    # Divided first: between the lowest and the highest of all floats lies more than a float holds.
    width = max(high / _MOST_BARS - low / _MOST_BARS, 1e-299)
    power = max(finest, math.floor(math.log10(width)))
    while True:
        for digit in (1, 2, 5):
            width = float(f"{digit}e{power}")
            start, end = math.floor(low / width), math.floor(high / width) + 1
            if end - start <= _MOST_BARS:
                # As decimals, since 3 × 0.1 is not 0.3.
                return [float(f"{place * digit}e{power}") for place in range(start, end + 1)]
        power += 1
