"""Source columns that a dataset keeps beside the task's own, so that results can be grouped by them.

A value is stored as UTF-8 in a fixed number of bytes: it is a name to group by, not data to learn from.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from maas_ray.data.names import KEEP_PREFIX
from maas_ray.errors import InvalidError
from maas_ray.tasks import Column, Row
from maas_ray.tasks.cells import category, cell

BYTES = 64
"""Bytes of a stored value; a longer value is cut."""
KEPT = "keep"
"""Key under which a parsed row holds its kept values: a mapping that tasks do not read."""
_COLUMN = Column("uint8", (BYTES,))


def stored_columns(keep: Iterable[str]) -> dict[str, Column]:
    """The stored column of each kept column. No task has columns of these names."""
    return {f"{KEPT}/{name}": _COLUMN for name in keep}


def kept(row: Row, keep: Iterable[str]) -> dict[str, bytes]:
    """The kept values of a raw row, by stored column.

    Raises:
        InvalidError: a value is neither a name nor a number.
    """
    return {f"{KEPT}/{name}": _bytes(name, row[KEEP_PREFIX + name]) for name in keep}


def _bytes(name: str, value: Any) -> bytes:
    try:
        text = category(cell(value)).replace("\0", "")
    except InvalidError as error:
        raise InvalidError("keep_unsupported", f"{name}, a column to keep, holds {error}") from error
    cut = text.encode(errors="replace")[:BYTES].decode(errors="ignore")  # not within a character
    return cut.encode().ljust(BYTES, b"\0")


def texts(values: np.ndarray) -> np.ndarray:
    """Values of a stored column, uint8 [n, BYTES], as an array of strings."""
    result = np.empty(len(values), object)
    result[:] = [value.tobytes().rstrip(b"\0").decode() for value in values]
    return result


def columns_to_read(columns: tuple[str, ...], keep: Iterable[str]) -> tuple[str, ...]:
    """A task's columns and the columns to keep."""
    return (*columns, *(KEEP_PREFIX + name for name in keep))
