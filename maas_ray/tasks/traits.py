"""What a person wants to know of a task's rows: traits that are counted, and media that are shown.

A task says what its rows are like (`Task.traits`, while a dataset is prepared) and what a stored row is
(`Task.describe`, when somebody looks at one). How that is counted and drawn is nobody's business here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["length", "label", "target", "column"]
"""length: how long a row is, `name` is the unit. label: its class, or its tokens'. target: the number to predict.
column: a column of a table."""


@dataclass(frozen=True)
class Trait:
    """One property of some rows.

    Args:
        role: what kind of property.
        name: the unit of a length; of others the name.
        values: numbers, float64 [n], of which NaN is a missing one; or names, of which None is.
    """

    role: Role
    name: str
    values: np.ndarray | Sequence[str | None]


def lengths(unit: str, values: Iterable[float]) -> Trait:
    """How long rows are, in a unit."""
    return Trait("length", unit, np.fromiter(values, np.float64))


@dataclass(frozen=True)
class Picture:
    """Something to look at: uint8 [height, width], or [height, width, 3]; `note` says what it is."""

    pixels: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Sound:
    """Something to hear: mono samples, float [n], which need not be scaled, and how many a second has."""

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class Curve:
    """Numbers in the order of time, float [n]."""

    values: np.ndarray


def picture_of(values: np.ndarray, note: str) -> Picture:
    """Numbers of any range as grey values, the lowest black; the first row is drawn below, as spectra have it."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    scaled = (values.astype(np.float64) - low) / (high - low or 1.0)
    return Picture((scaled[::-1] * 255).astype(np.uint8), note)
