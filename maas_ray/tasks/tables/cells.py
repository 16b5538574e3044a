"""What stands in a cell of a table: a number, a category, or nothing. The same in files and in requests."""

import math
import re
from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

Cell = int | float | str | None
"""A number, a text that may be a number too, or nothing."""


_LONGEST_WORD = len("false")  # of those that are not themselves
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,299})\.0+")
"""A text that says a whole number as a decimal."""


def cell(value: Any) -> Cell:
    """A value of a file or a request: booleans are the texts `true` and `false`, NaN and blank text are nothing.

    A text that says one of these is as the value.

    Raises:
        ValueError: it is none of these; says what it is.
    """
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_WORD:
            return text
        folded = text.lower()
        if folded in ("true", "false"):
            return folded
        return None if folded in ("", "nan", "+nan", "-nan") else text
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Integral):
        return int(value)  # exactly: it may be an identifier of many digits
    if isinstance(value, (Real, Decimal)):
        return _finite(float(value))
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    raise ValueError(f"a {type(value).__name__}, no number and no text")


def number(value: Cell) -> float:
    """A cell as a number; NaN where there is none.

    Raises:
        ValueError: it is a text that is no number.
    """
    if isinstance(value, str):
        if "_" in value:  # which Python would read over
            raise ValueError(f"{value!r} is no number")
        try:
            value = _finite(float(value))
        except ValueError:
            raise ValueError(f"{value!r} is no number") from None
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        raise ValueError("an integer beyond all numbers") from None


def numbers(values: Sequence[Cell]) -> np.ndarray:
    """Cells as numbers, float64, each as `number` has it.

    Raises:
        ValueError: one is a text that is no number.
    """
    try:
        found = np.array([math.nan if value is None else float(value) for value in values], np.float64)
    except (ValueError, OverflowError):
        return np.array([number(value) for value in values], np.float64)
    # What Python reads and `number` does not.
    if np.isinf(found).any() or "_" in "".join([value for value in values if isinstance(value, str)]):
        return np.array([number(value) for value in values], np.float64)
    return found


def category(value: Cell) -> str:
    """A cell as the name of a category, a whole number without its point; empty where there is none."""
    if isinstance(value, str) and value.endswith("0") and _WHOLE.fullmatch(value):
        value = float(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return "" if value is None else str(value)


def cell_of(column: str, value: Any) -> Cell:
    """A value of a named column, as `cell` has it.

    Raises:
        ValueError: names the column.
    """
    try:
        return cell(value)
    except ValueError as error:
        raise ValueError(f"column {column!r} holds {error}; leave it out by `exclude` or `features`") from error


def number_of(column: str, value: Cell) -> float:
    """A cell of a named column, as `number` has it.

    Raises:
        ValueError: names the column.
    """
    try:
        return number(value)
    except ValueError as error:
        raise ValueError(f"column {column!r} is a number: {error}") from error


def _finite(value: float) -> float | None:
    if math.isinf(value):
        raise ValueError("an infinite number")
    return None if math.isnan(value) else value
