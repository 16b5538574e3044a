"""Statistics of a dataset's rows, counted while they are encoded: lengths, labels, targets, columns.

    of_rows(split, traits) ──▶ Profile ──merge──▶ … ──▶ profile.json

Profiles of parts add up to the profile of the whole, exactly, in any order and for any cut of the rows: bins are the
same for all data, counts are integers, sums are fractions. So the same rows give the same file on any number of
workers, and a dataset that has grown has the sum of its parts. This module knows no files, no cluster and no task.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np

from maas_ray.errors import CorruptError
from maas_ray.tasks.traits import Trait

PROFILE_FILE = "profile.json"
"""Path of the profile in a dataset."""
FORMAT = 1

# The end of the last bin must be a float, which limits the largest power of ten.
_EXPONENTS = range(-300, 307)
_MANTISSA_BITS, _HALF_BITS = 53, 26


@dataclass(frozen=True)
class Numbers:
    """Numbers in bins. A bin holds numbers with the same first two decimal digits, as in HdrHistogram (Tene).

    So a number is known to a tenth or better, and whole numbers below 100 have a bin each. `12e1` is the bin of
    [120, 130), `-12e1` that of (-130, -120], and `0e0` that of zero and of numbers closer to it than 1e-299. The last
    bin, `99e306`, also holds all numbers beyond it.

    Args:
        count: number of values that are not missing.
        missing: number of missing values.
        total: their exact sum.
        least, most: the lowest and the highest value; 0 if there are none.
        bins: number of values in each bin.
    """

    count: int = 0
    missing: int = 0
    total: Fraction = Fraction(0)
    least: float = 0.0
    most: float = 0.0
    bins: Counter[str] = field(default_factory=Counter)

    @property
    def mean(self) -> float:
        """Mean of the values that are not missing; 0 if there are none."""
        return float(self.total / self.count) if self.count else 0.0

    def ordered(self) -> list[tuple[float, float, int]]:
        """(from, to, count) of each bin that is not empty, the lowest numbers first."""
        return sorted((*edges_of(name), count) for name, count in self.bins.items())

    @property
    def whole(self) -> bool:
        """True if all values seem to be whole numbers: by their bins below 10, by their sum beyond."""
        if self.total.denominator != 1 or not (self.least.is_integer() and self.most.is_integer()):
            return False
        return all(min(low, high, key=abs).is_integer() for low, high, _ in self.ordered())

    def quantile(self, share: float) -> float:
        """A number below which a share of all values lies, exact to a bin. Values in a bin are assumed to be evenly
        spread. The quantile of whole numbers is a whole number.
        """
        left = share * self.count
        for low, high, count in self.ordered():
            if left <= count:
                value = low + (high - low) * left / count
                if self.whole:
                    value = _whole(value, low, high)
                return min(max(value, self.least), self.most)
            left -= count
        return self.most


def _whole(value: float, low: float, high: float) -> float:
    """The whole number for a position in a bin. Bins begin at the end that is closer to zero."""
    if low < 0:
        return float(max(math.ceil(value), math.floor(low) + 1))
    return float(min(math.floor(value), math.ceil(high) - 1)) if high > 0 else value


@dataclass(frozen=True)
class Names:
    """The count of each name, and of missing ones."""

    counts: Counter[str] = field(default_factory=Counter)
    missing: int = 0


Key = tuple[str, str, str]
"""Split, role and name of a trait."""
Profile = dict[Key, Numbers | Names]


# --- of rows ---------------------------------------------------------------------------------------


def of_rows(split: str, traits: Iterable[Trait]) -> Profile:
    """The profile of some rows of a split."""
    return {(split, trait.role, trait.name): _counted(trait) for trait in traits}


def _counted(trait: Trait) -> Numbers | Names:
    if not isinstance(trait.values, np.ndarray):
        counts = Counter(trait.values)
        missing = counts.pop(None, 0)
        return Names(Counter({str(name): count for name, count in counts.items()}), missing)
    values = trait.values[np.isfinite(trait.values)].astype(np.float64)
    if not len(values):
        return Numbers(missing=len(trait.values))
    places, counts_of = np.unique(_places(values), return_counts=True)
    return Numbers(
        count=len(values),
        missing=len(trait.values) - len(values),
        total=exact_sum(values),
        least=float(values.min()) + 0.0,  # -0.0 and 0.0 are the same number, but different texts
        most=float(values.max()) + 0.0,
        bins=Counter(dict(zip(map(_name_of, places.tolist()), counts_of.tolist(), strict=True))),
    )


def exact_sum(values: np.ndarray) -> Fraction:
    """The sum of finite float64 numbers without rounding, which therefore does not depend on their order.

    Numbers of one exponent are integers times one power of two, as in Kulisch's long accumulator (Computer Arithmetic
    and Validity, 2nd ed. 2013); halves of 26 and 27 bits do not overflow for fewer than 2**36 of them.
    """
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, _MANTISSA_BITS).astype(np.int64)
    high = whole >> _HALF_BITS
    low = whole - (high << _HALF_BITS)
    total = Fraction(0)
    for exponent in np.unique(exponents).tolist():
        some = exponents == exponent
        units = (int(high[some].sum()) << _HALF_BITS) + int(low[some].sum())
        power = exponent - _MANTISSA_BITS
        total += Fraction(units << power) if power >= 0 else Fraction(units, 1 << -power)
    return total


@cache
def _edges() -> np.ndarray:
    """The beginnings of bins of positive numbers, ascending. A number is in the last bin that begins at or below it."""
    return np.array([float(f"{digits}e{exponent}") for exponent in _EXPONENTS for digits in range(10, 100)])


def _places(values: np.ndarray) -> np.ndarray:
    """The number of each value's bin: 0 for zero, negative for negative values."""
    bins = np.searchsorted(_edges(), np.abs(values), side="right")
    places: np.ndarray = np.where(values < 0, -bins, bins)
    return places


@lru_cache(1 << 12)
def _name_of(place: int) -> str:
    if not place:
        return "0e0"
    exponent, digits = divmod(abs(place) - 1, 90)
    return f"{'-' if place < 0 else ''}{digits + 10}e{exponent + _EXPONENTS.start}"


@lru_cache(1 << 12)
def edges_of(name: str) -> tuple[float, float]:
    """Beginning and end of a bin, the lower number first."""
    digits, _, exponent = name.partition("e")
    near = int(digits)
    far = near + (1 if near > 0 else -1 if near < 0 else 0)
    low, high = sorted((float(f"{near}e{exponent}"), float(f"{far}e{exponent}")))
    return low, high


# --- of parts --------------------------------------------------------------------------------------


def merge(profiles: Iterable[Profile]) -> Profile:
    """The profile of the rows of several profiles together. Their order does not matter."""
    merged: Profile = {}
    for profile in profiles:
        for key, trait in profile.items():
            merged[key] = _added(merged[key], trait) if key in merged else trait
    return merged


def _added(one: Numbers | Names, other: Numbers | Names) -> Numbers | Names:
    if isinstance(one, Names) and isinstance(other, Names):
        return Names(one.counts + other.counts, one.missing + other.missing)
    if isinstance(one, Numbers) and isinstance(other, Numbers):
        filled = [side for side in (one, other) if side.count]
        return Numbers(
            count=one.count + other.count,
            missing=one.missing + other.missing,
            total=one.total + other.total,
            least=min((side.least for side in filled), default=0.0),
            most=max((side.most for side in filled), default=0.0),
            bins=one.bins + other.bins,
        )
    raise TypeError("a task has numbers and names for the same trait")


# --- as text ---------------------------------------------------------------------------------------


def to_json(profile: Profile) -> str:
    """JSON of a profile, the same for equal profiles: `{"splits": {split: {role: {name: …}}}}`."""
    splits: dict[str, dict[str, dict[str, Any]]] = {}
    for (split, role, name), some in sorted(profile.items(), key=lambda item: item[0]):
        splits.setdefault(split, {}).setdefault(role, {})[name] = document_of(some)
    return json.dumps({"format": FORMAT, "splits": splits}, separators=(",", ":"))


def document_of(some: Numbers | Names) -> dict[str, Any]:
    """One trait as plain JSON values. `total` is a fraction as text, because a float would round it."""
    if isinstance(some, Names):
        return {"missing": some.missing, "counts": dict(sorted(some.counts.items()))}
    document: dict[str, Any] = {"count": some.count, "missing": some.missing, "total": str(some.total)}
    bins = dict(sorted(some.bins.items(), key=lambda item: edges_of(item[0])))
    return document | {"least": some.least, "most": some.most, "bins": bins}


def from_json(text: str | bytes, source: str = PROFILE_FILE) -> Profile:
    """The inverse of `to_json`.

    Raises:
        CorruptError: the text is not a profile.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, not {FORMAT}")
        return {
            (split, role, name): _parsed(some)
            for split, roles in document["splits"].items()
            for role, names in roles.items()
            for name, some in names.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{source} is not a profile of a dataset: {error}.", code="profile_corrupt") from error


def _parsed(some: dict[str, Any]) -> Numbers | Names:
    if "counts" in some:
        return Names(Counter(some["counts"]), some["missing"])
    least, most = float(some["least"]), float(some["most"])
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(f"least {least}, most {most}")
    for name in some["bins"]:
        edges_of(name)
    return Numbers(some["count"], some["missing"], Fraction(some["total"]), least, most, Counter(some["bins"]))
