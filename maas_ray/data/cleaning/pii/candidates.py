"""Positions of a text at which personal data can be, found with NumPy in a fraction of the time that `re` takes.

Most of a text is none. These positions say which lines, and which parts of them, the patterns have to search.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np

_DIGIT, _LETTER, _DASH, _POINT, _BREAK = 1, 2, 4, 8, 16
_MAX_GAP = 4  # from one digit of a number to the next
_MIN_KEY = 17  # characters of the shortest key, from the sign before its random part


def _kinds() -> bytes:
    """The kind of each ASCII character; 0 for all others."""
    kinds = bytearray(256)
    for sign in map(chr, range(128)):
        kinds[ord(sign)] = _DIGIT if sign.isdigit() else _LETTER if sign.isalpha() else 0
    kinds[ord("_")] = kinds[ord("-")] = _DASH
    kinds[ord(".")], kinds[ord("\n")] = _POINT, _BREAK
    return bytes(kinds)


_KINDS = _kinds()


class Candidates:
    """Parts of a text to search.

    Args:
        text: the text, see `characters.searchable`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # Each other character becomes one question mark.
        self._kinds = np.frombuffer(text.encode("ascii", "replace").translate(_KINDS), np.uint8)

    @cached_property
    def _digits(self) -> np.ndarray:
        return np.flatnonzero(self._kinds == _DIGIT)

    def numbers(self, digits: int) -> np.ndarray:
        """The first of so many digits close together on a line."""
        breaks = np.searchsorted(np.flatnonzero(self._kinds == _BREAK), self._digits)
        close = (np.diff(self._digits) <= _MAX_GAP) & (np.diff(breaks) == 0)
        count = np.concatenate([[0], np.cumsum(close)])
        gaps = digits - 1
        first: np.ndarray = self._digits[np.flatnonzero(count[gaps:] - count[:-gaps] == gaps)]
        return first

    @cached_property
    def points(self) -> np.ndarray:
        """The first of two points with one to three digits between them, and digits around."""
        points = np.flatnonzero(self._kinds[1:-1] == _POINT) + 1
        points = points[(self._kinds[points - 1] == _DIGIT) & (self._kinds[points + 1] == _DIGIT)]
        first: np.ndarray = points[:-1][np.diff(points) <= _MAX_GAP]
        return first

    @cached_property
    def check_digits(self) -> np.ndarray:
        """The first of two digits after two letters, as an IBAN begins."""
        first: np.ndarray = self._digits[:-1][np.diff(self._digits) == 1]
        first = first[first >= 2]
        after: np.ndarray = first[(self._kinds[first - 1] == _LETTER) & (self._kinds[first - 2] == _LETTER)]
        return after

    def runs(self) -> Iterator[tuple[int, int]]:
        """Start and end of each run of letters, digits, dashes and underscores that is long enough for a key."""
        signs = np.flatnonzero((self._kinds & (_DIGIT | _LETTER | _DASH)) == 0)
        ends = np.concatenate([signs, [len(self._kinds)]])
        starts = np.concatenate([[0], signs + 1])
        long = ends - starts >= _MIN_KEY
        return zip(starts[long].tolist(), ends[long].tolist(), strict=True)

    def lines(self, positions: np.ndarray) -> Iterator[tuple[int, int]]:
        """Start and end of each line that has one of these positions, which ascend."""
        end = -1
        for position in positions.tolist():
            if position > end:
                start = self.text.rfind("\n", 0, position) + 1
                end = self.text.find("\n", position)
                end = len(self.text) if end < 0 else end
                yield start, end
