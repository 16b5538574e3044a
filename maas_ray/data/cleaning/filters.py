"""`length` and `characters`: texts that are too short, too long, or made of the wrong stuff."""

import sys
import unicodedata
from functools import cache
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.texts import TextFilter


class Length(TextFilter):
    """`{step: length, min_words: 5}`"""

    step: Literal["length"] = "length"
    """Which step."""
    min_characters: int | None = Field(None, ge=0)
    """Least Unicode characters of a text. None: any."""
    max_characters: int | None = Field(None, ge=1)
    """Most Unicode characters of a text. None: any."""
    min_words: int | None = Field(None, ge=0)
    """Least words, which white space stands between; a script without it is counted by characters. None: any."""
    max_words: int | None = Field(None, ge=1)
    """Most words. None: any."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        bounds = {"characters": (self.min_characters, self.max_characters), "words": (self.min_words, self.max_words)}
        if all(bound is None for pair in bounds.values() for bound in pair):
            raise ValueError("says no length; give min_characters, max_characters, min_words or max_words.")
        for unit, (least, most) in bounds.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is more than max_{unit} ({most}); no text has both.")
        return self

    def check(self, text: str) -> None:
        for unit, least, most in (
            ("characters", self.min_characters, self.max_characters),
            ("words", self.min_words, self.max_words),
        ):
            if least is None and most is None:
                continue
            count = len(text) if unit == "characters" else len(text.split())
            if least is not None and count < least:
                raise Dropped(f"too few {unit}")
            if most is not None and count > most:
                raise Dropped(f"too many {unit}")


def _ordered(share: tuple[float, float]) -> tuple[float, float]:
    if share[0] > share[1]:
        raise ValueError(f"[{share[0]:g}, {share[1]:g}]: the least is more than the most; swap them.")
    return share


_Part = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[tuple[_Part, _Part], AfterValidator(_ordered)]
"""Least and most, both in [0, 1]."""

_LETTER, _UPPER, _DIGIT, _SYMBOL, _SPACE, _WIDE = 1, 2, 4, 8, 16, 32


class Characters(TextFilter):
    """`{step: characters, alphabetic: [0.6, 1]}`: shares of a text's characters, by Unicode's general categories."""

    step: Literal["characters"] = "characters"
    """Which step."""
    alphabetic: Share | None = None
    """Least and most share of letters and the marks that belong to them (L, M), of any script. None: any."""
    digits: Share | None = None
    """Of digits and other numbers (N)."""
    symbols: Share | None = None
    """Of punctuation and symbols (P, S)."""
    whitespace: Share | None = None
    """Of white space."""
    uppercase: Share | None = None
    """Of capitals (Lu, Lt), among the letters."""
    non_ascii: Share | None = None
    """Of what is not ASCII."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(getattr(self, name) is None for name in _KINDS):
            raise ValueError(f"says no share; give one of {', '.join(_KINDS)}, such as `alphabetic: [0.6, 1]`.")
        return self

    def check(self, text: str) -> None:
        if not text:
            return
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        counts = np.bincount(_classes()[points], minlength=64)
        for name, (kind, among) in _KINDS.items():
            share: tuple[float, float] | None = getattr(self, name)
            total = len(points) if among is None else _count(counts, among)
            if share is None or not total:
                continue
            found = _count(counts, kind) / total
            if found < share[0]:
                raise Dropped(f"too few {name}")
            if found > share[1]:
                raise Dropped(f"too many {name}")


_KINDS: dict[str, tuple[int, int | None]] = {
    "alphabetic": (_LETTER, None),
    "digits": (_DIGIT, None),
    "symbols": (_SYMBOL, None),
    "whitespace": (_SPACE, None),
    "uppercase": (_UPPER, _LETTER),
    "non_ascii": (_WIDE, None),
}


def _count(counts: np.ndarray, kind: int) -> int:
    return int(counts[(np.arange(64) & kind) > 0].sum())


@cache
def _classes() -> np.ndarray:
    """What each code point is, as bits, uint8 [0x110000]; made once in a process, in a third of a second."""
    bits = {"L": _LETTER, "M": _LETTER, "N": _DIGIT, "P": _SYMBOL, "S": _SYMBOL}
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        category = unicodedata.category(character)
        table[point] = (
            bits.get(category[0], 0)
            | (_UPPER if category in ("Lu", "Lt") else 0)
            | (_SPACE if character.isspace() else 0)
            | (_WIDE if point > 127 else 0)
        )
    return table
