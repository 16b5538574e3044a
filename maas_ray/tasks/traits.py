"""Views of a task's rows: traits to profile, and media to show.

`Task.traits` gives the former while a dataset is prepared, `Task.describe` the latter for one stored row. Counting and
drawing happen elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["length", "label", "target", "column"]
"""length: the length of a row; `name` is the unit. label: the class of a row or of its tokens. target: the number to
predict. column: a column of a table."""


@dataclass(frozen=True)
class Trait:
    """One property of some rows.

    Args:
        role: the kind of property.
        name: the unit if it is a length, else a name.
        values: numbers, float64 [n], with NaN for missing ones; or names, with None for missing ones.
    """

    role: Role
    name: str
    values: np.ndarray | Sequence[str | None]


def lengths(unit: str, values: Iterable[float]) -> Trait:
    """Lengths of rows, in a unit."""
    return Trait("length", unit, np.fromiter(values, np.float64))


@dataclass(frozen=True)
class Picture:
    """An image to show: uint8 [height, width] or [height, width, 3], with a caption in `note`."""

    pixels: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Sound:
    """A sound to play: mono samples, float [n], of any scale, and their rate per second."""

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class Curve:
    """A series to plot: numbers in the order of time, float [n]."""

    values: np.ndarray


def picture_of(values: np.ndarray, note: str) -> Picture:
    """Numbers of any range as grey values, the lowest black. The first row is drawn at the bottom, as for spectra."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    scaled = (values.astype(np.float64) - low) / (high - low or 1.0)
    return Picture((scaled[::-1] * 255).astype(np.uint8), note)
