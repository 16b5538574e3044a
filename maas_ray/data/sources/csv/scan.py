"""Finds the rows of RFC 4180 CSV with NumPy, without parsing them, one stretch of bytes at a time.

A line break outside quotes ends a row, and it is outside if the number of quotes before it is even. That holds as long
as each quote opens a value, closes one, or is doubled inside a quoted value. Up to the first byte that breaks this
rule, or any other rule of a strict parser, the result agrees with Python's `csv`. Later bytes are left to `parse`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_BREAK, _RETURN = 0x0A, 0x0D
_NONE = np.empty(0, np.int64)
_MAX_CHARACTER = 4  # bytes of one character in UTF-8


class Rows(NamedTuple):
    """The whole rows at the beginning of a stretch.

    Args:
        starts: first byte of each row that is not blank, int64.
        ends: byte after each of these rows, int64.
        lines: lines before each of these rows, int64.
        end: byte after the last row, blank rows included.
        line_count: lines up to `end`.
        plain: whether the bytes after `end` may be plain too: the stretch ends within a row.
    """

    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    end: int
    line_count: int
    plain: bool


@lru_cache
def of_single_bytes(charset: str) -> bool:
    """True if each byte is one character in any context, and ASCII is unchanged, so that bytes can be searched for."""
    try:
        if bytes(range(128)).decode(charset) != bytes(range(128)).decode("ascii"):
            return False
    except ValueError:
        return False
    alone, twice = ([_decoded(bytes([byte] * count), charset) for byte in range(128, 256)] for count in (1, 2))
    return all((a * 2 if a else a) == b and len(a) <= 1 for a, b in zip(alone, twice, strict=True))


def _decoded(content: bytes, charset: str) -> str:
    try:
        return content.decode(charset)
    except ValueError:
        return ""


def scannable(charset: str, delimiter: str, quote: str, escape: str = "") -> bool:
    """True if `scan` can be used: everything it searches for is a single byte that is part of no other character."""
    signs = delimiter + quote + escape
    return (
        (charset == "utf-8" or of_single_bytes(charset))
        and signs.isascii()
        and not set(signs) & set("\r\n")
        and len(set(signs)) == len(signs)
    )


def scan(content: bytes, charset: str, delimiter: str, quote: str, escape: str = "") -> Rows:
    """The plain rows at the beginning of `content`, whose first byte begins a row.

    Args:
        content: bytes of the file.
        charset: encoding of the file; `scannable` with delimiter and quote.
        delimiter: the character between two values.
        quote: the character around values. Empty: no value is quoted.
        escape: the character that takes the meaning of the next one. A row with one is not plain.
    """
    if not content:
        return Rows(_NONE, _NONE, _NONE, 0, 0, plain=True)
    limit = _decodable(content, charset)
    plain = limit > len(content) - _MAX_CHARACTER  # a character cut at the end is whole in the next stretch
    if escape and 0 <= (escaped := content.find(escape.encode())) < limit:
        limit, plain = escaped, False
    if not limit:
        return Rows(_NONE, _NONE, _NONE, 0, 0, plain)
    values = np.frombuffer(content, np.uint8, limit)
    breaks = np.flatnonzero(values == _BREAK)
    ends = breaks
    quotes = np.flatnonzero(values == ord(quote)) if quote and quote.encode() in content else _NONE
    if len(quotes):
        wrong = _first_wrong(values, quotes, ord(delimiter), ord(quote))
        if wrong < limit:
            limit, plain = wrong, False
        ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
    if b"\r" in content:
        returns = np.flatnonzero(values == _RETURN)
        followed = values[np.minimum(returns + 1, len(values) - 1)] == _BREAK
        if len(quotes):
            followed |= np.searchsorted(quotes, returns) % 2 == 1
        # The line break after a carriage return at the very end may be in the next stretch.
        stray = returns[~followed & (returns < len(values) - 1)]
        if len(stray) and stray[0] < limit:
            limit, plain = int(stray[0]), False
    ends = ends[: np.searchsorted(ends, limit)] + 1
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else _NONE
    end = int(ends[-1]) if len(ends) else 0
    lines, line_count = np.arange(len(ends)), len(ends)
    if len(quotes):
        lines, line_count = np.searchsorted(breaks, starts), int(np.searchsorted(breaks, end))
    lengths = ends - starts
    blank = lengths == 1
    if b"\r" in content:
        blank |= (lengths == 2) & (values[starts] == _RETURN)
    if blank.any():
        starts, ends, lines = starts[~blank], ends[~blank], lines[~blank]
    return Rows(starts, ends, lines, end, line_count, plain)


def _decodable(content: bytes, charset: str) -> int:
    """Number of bytes at the beginning that can be decoded."""
    if content.isascii():
        return len(content)
    try:
        content.decode(charset)
    except UnicodeDecodeError as error:
        return error.start
    return len(content)


def _first_wrong(values: np.ndarray, quotes: np.ndarray, delimiter: int, quote: int) -> int:
    """Index of the first quote that neither opens nor closes a value nor is doubled; the length, if there is none."""
    size = len(values)
    before, after = values[np.maximum(quotes - 1, 0)], values[np.minimum(quotes + 1, size - 1)]
    opening, closing = np.arange(len(quotes)) % 2 == 0, np.arange(len(quotes)) % 2 == 1
    doubled_before = np.zeros(len(quotes), bool)
    doubled_before[1:] = np.diff(quotes) == 1
    opens = (before == delimiter) | (before == _BREAK) | doubled_before | (quotes == 0)
    second = values[np.minimum(quotes + 2, size - 1)]
    closes = (after == delimiter) | (after == _BREAK) | (after == quote)
    closes |= (after == _RETURN) & ((second == _BREAK) | (quotes + 2 >= size))
    closes |= quotes + 1 >= size  # the next byte is in the next stretch
    wrong = np.flatnonzero((opening & ~opens) | (closing & ~closes))
    return int(quotes[wrong[0]]) if len(wrong) else size
