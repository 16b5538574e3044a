"""Source columns that a dataset keeps beside what its task stores, so that results can be told apart by them.

A value is stored as UTF-8 in a fixed number of bytes: it is a name to group by, not data to learn from.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from maas_ray.data.names import KEEP_PREFIX
from maas_ray.tasks import Column, Row

BYTES = 64
"""Room for a value; a longer one is cut."""
KEPT = "keep"
"""Where a parsed row has the values it keeps: a mapping that tasks do not look at."""
_COLUMN = Column("uint8", (BYTES,))


def stored_columns(keep: Iterable[str]) -> dict[str, Column]:
    """The stored column of each column that is kept; no task's column is called so."""
    return {f"{KEPT}/{name}": _COLUMN for name in keep}


def kept(row: Row, keep: Iterable[str]) -> dict[str, bytes]:
    """What a raw row keeps, by stored column.

    Raises:
        ValueError: a value is nothing to group by.
    """
    return {f"{KEPT}/{name}": _bytes(name, row[KEEP_PREFIX + name]) for name in keep}


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, (bytes, list, dict, tuple, np.ndarray)):
        raise ValueError(f"{name}, a column to keep, holds a {type(value).__name__}, not a name or a number")
    text = "" if value is None else str(value).replace("\0", "")
    cut = text.encode(errors="replace")[:BYTES].decode(errors="ignore")  # never within a character
    return cut.encode().ljust(BYTES, b"\0")


def texts(values: np.ndarray) -> np.ndarray:
    """Values of a stored column, uint8 [n, BYTES], as an array of strings."""
    found = np.empty(len(values), object)
    found[:] = [value.tobytes().rstrip(b"\0").decode() for value in values]
    return found


def columns_to_read(columns: tuple[str, ...], keep: Iterable[str]) -> tuple[str, ...]:
    """A task's columns and those to keep."""
    return (*columns, *(KEEP_PREFIX + name for name in keep))
