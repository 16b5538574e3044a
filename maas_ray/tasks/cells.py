"""Cells of a table, in files and in requests: a number, a category, or nothing."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any
from uuid import UUID

import numpy as np

from maas_ray.errors import InvalidError

Cell = int | float | str | None
"""A number, a text (which may spell a number), or nothing."""


_MAX_WORD = len("false")  # the longest text with a meaning of its own
_MAX_DIGITS = 310  # a decimal beyond them is too large for a float
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,299})\.0+")
"""A text that spells a whole number as a decimal."""


def cell(value: Any) -> Cell:
    """A value of a file or a request as a cell.

    Booleans become the texts `true` and `false`; NaN and blank text become None. A text that spells such a value is
    treated as the value. Bytes are UTF-8, as old writers of Parquet leave texts. Durations are seconds.

    Raises:
        InvalidError: the value is of another type, or infinite.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _MAX_WORD:
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
        return int(value)  # not as a float: it may be an identifier of many digits
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value) if value.adjusted() < _MAX_DIGITS else _finite(float(value))
    if isinstance(value, (Real, Decimal)):
        return _finite(float(value))
    return _of_rare_type(value)


def _of_rare_type(value: Any) -> Cell:
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    raise InvalidError("wrong_type", f"a {type(value).__name__}, which is neither a number nor a text")


def number(value: Cell) -> float:
    """A cell as a number; NaN if it is empty.

    Raises:
        InvalidError: a text does not spell a number, or an integer is too large for a float.
    """
    if isinstance(value, str):
        if "_" in value:  # Python ignores underscores
            raise InvalidError("not_a_number", f"{value!r} is not a number")
        try:
            value = _finite(float(value))
        except ValueError:
            raise InvalidError("not_a_number", f"{value!r} is not a number") from None
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        raise InvalidError("number_too_large", "an integer is too large for a float") from None


def numbers(values: Sequence[Cell]) -> np.ndarray:
    """Cells as numbers, float64, with the rules of `number`.

    Raises:
        InvalidError: as `number` does.
    """
    try:
        result = np.array([math.nan if value is None else float(value) for value in values], np.float64)
    except (ValueError, OverflowError):
        return np.array([number(value) for value in values], np.float64)
    # Python accepts infinity and underscores, `number` does not.
    if np.isinf(result).any() or "_" in "".join([value for value in values if isinstance(value, str)]):
        return np.array([number(value) for value in values], np.float64)
    return result


def category(value: Cell) -> str:
    """A cell as the name of a category; empty if the cell is. Whole numbers lose their decimals.

    Names are in NFC, because macOS decomposes the letters of file names: `é` is one name, however it is encoded.
    """
    if isinstance(value, str) and value.endswith("0") and _WHOLE.fullmatch(value):
        value = float(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return "" if value is None else unicodedata.normalize("NFC", str(value))


def indices(names: Iterable[str], start: int = 0) -> dict[str, int]:
    """The index of each name, also in NFC: the names of older tasks are as their files had them."""
    exact = {name: index for index, name in enumerate(names, start)}
    return {unicodedata.normalize("NFC", name): index for name, index in exact.items()} | exact


def name_of(value: Any) -> str:
    """A value of any type as the name of a group or class; empty if it is missing.

    17, 17.0 and the text "17.0" have one name, so it does not depend on the type that a file gives its column.
    """
    try:
        return category(cell(value.decode(errors="backslashreplace") if isinstance(value, bytes) else value))
    except ValueError:
        return str(value)


def cell_of(column: str, value: Any) -> Cell:
    """A value of a named column as a cell.

    Raises:
        InvalidError: as `cell` does; names the column.
    """
    try:
        return cell(value)
    except ValueError as error:  # a signalling NaN raises Python's own
        code = error.code if isinstance(error, InvalidError) else "invalid_number"
        raise InvalidError(code, f"column {column!r} holds {error}; drop it with `exclude` or `features`") from error


def number_of(column: str, value: Cell) -> float:
    """A cell of a named column as a number.

    Raises:
        InvalidError: as `number` does; names the column.
    """
    try:
        return number(value)
    except InvalidError as error:
        raise InvalidError(error.code, f"column {column!r} must be a number: {error}") from error


def label(value: Any) -> str:
    """A value as the name of a class, the same in all files, tasks and types: `1`, `1.0` and `"1"` are one class.

    Empty if the value is missing. The text `nan` is a name: ISO 639 has it for Min Nan, and no row may vanish.

    Raises:
        InvalidError: as `cell` does; says that it is a label.
    """
    try:
        text = _decoded(value) if isinstance(value, bytes) else value
        return category(cell(text)) or (text.strip() if isinstance(text, str) else "")
    except InvalidError as error:
        raise InvalidError(error.code, f"the label is {error}") from error


def text_of(column: str, value: Any) -> str | None:
    """A value of a column of texts. Bytes are UTF-8, as whole files and old writers of Parquet have them.

    Raises:
        InvalidError: it is not a text.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidError("not_utf_8", f"not UTF-8: byte {value[error.start]:#04x} at {error.start}") from error
    if value is not None and not isinstance(value, str):
        raise InvalidError("wrong_type", f"{column} is a {type(value).__name__}, not a string")
    return value


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidError("not_text", "bytes that are not UTF-8 text") from None


def _finite(value: float) -> float | None:
    if math.isinf(value):
        raise InvalidError("not_finite", "an infinite number")
    return None if math.isnan(value) else value
