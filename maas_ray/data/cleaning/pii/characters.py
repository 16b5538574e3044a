"""A copy of a text that is easy to search, and the way back from it.

Word processors, web pages, PDFs and phones write numbers with no-break spaces, en dashes, full-width digits and
invisible marks. In the copy they are plain ASCII, so patterns need not know them.
"""

import unicodedata
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np

# Scripts that write words without spaces, and Korean, whose particles follow a word directly: a letter of them beside a
# number does not belong to it. Thai to Burmese, Hangul Jamo, Khmer, Tai Le to Balinese, ideographs and kana, Yi,
# Javanese and Burmese extensions, Hangul, compatibility ideographs, half-width kana, further ideographs.
_UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\ua4cf\ua960-\uaa7f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
WORD = rf"[^\W{_UNSPACED}]"
"""A letter, digit or underscore that would belong to a number or name beside it."""
LETTER = rf"[^\W\d_{_UNSPACED}]"
"""A letter that would."""
ALPHANUMERIC = rf"[^\W_{_UNSPACED}]"
"""A letter or digit that would."""


_REMOVED = 0x110000
"""Stands for a character that cannot be seen; it is beyond Unicode."""


@cache
def _table() -> np.ndarray:
    """The code of the character in the copy for the code of each character, uint32."""
    table = np.arange(_REMOVED, dtype=np.uint32)
    table[0xFF01:0xFF5F] -= 0xFEE0  # full-width forms
    table[0x2212] = ord("-")
    table[0xE0000:0xE0080] = _REMOVED  # tags
    for code in range(0x80, 0x20000):
        match unicodedata.category(chr(code)):
            case "Zs":
                table[code] = ord(" ")
            case "Pd":
                table[code] = ord("-")
            case "Nd":
                table[code] = ord("0") + unicodedata.digit(chr(code))
            case "Cf":
                table[code] = _REMOVED
    return table


@dataclass(frozen=True)
class Searchable:
    """A text to search.

    Args:
        text: the copy.
        removed: indices in the copy before which a character of the original is missing, ascending.
    """

    text: str
    removed: list[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Start and end in the original of a part of the copy."""
        return start + bisect_right(self.removed, start), end + bisect_left(self.removed, end)


def searchable(text: str) -> Searchable:
    """The copy of a text."""
    if text.isascii():
        return Searchable(text, [])
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    copied = _table()[codes]
    if np.array_equal(copied, codes):
        return Searchable(text, [])
    gone = np.flatnonzero(copied == _REMOVED)
    copy = np.delete(copied, gone).tobytes().decode("utf-32-le", "surrogatepass")
    return Searchable(copy, (gone - np.arange(len(gone))).tolist())
