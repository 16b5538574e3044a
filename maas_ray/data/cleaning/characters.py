"""`characters`: drops texts by the shares of letters, digits, symbols and other kinds of characters."""

import sys
import unicodedata
from functools import cache
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.base.text import TextFilter
from maas_ray.errors import InvalidError


def _ordered(share: tuple[float, float]) -> tuple[float, float]:
    if share[0] > share[1]:
        raise InvalidError("bounds_crossed", f"[{share[0]:g}, {share[1]:g}]: the minimum is above the maximum.")
    return share


_Part = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[tuple[_Part, _Part], AfterValidator(_ordered)]
"""Minimum and maximum, both in [0, 1]."""

_LETTER, _UPPER, _DIGIT, _SYMBOL, _SPACE, _WIDE = 1, 2, 4, 8, 16, 32


class Characters(TextFilter):
    """`{step: characters, alphabetic: [0.6, 1]}`: shares of a text's characters, by Unicode's general categories."""

    step: Literal["characters"] = "characters"
    """Name of the step."""
    alphabetic: Share | None = None
    """Minimum and maximum share of letters and their marks (L, M) in any script, each in [0, 1]. None: no limit."""
    digits: Share | None = None
    """Minimum and maximum share of digits and other numbers (N). None: no limit."""
    symbols: Share | None = None
    """Minimum and maximum share of punctuation and symbols (P, S). None: no limit."""
    whitespace: Share | None = None
    """Minimum and maximum share of white space. None: no limit."""
    uppercase: Share | None = None
    """Minimum and maximum share of capitals (Lu, Lt) among the letters. None: no limit."""
    non_ascii: Share | None = None
    """Minimum and maximum share of characters outside ASCII. None: no limit."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(getattr(self, name) is None for name in _KINDS):
            raise InvalidError(
                "no_limit", f"no share is set; set one of {', '.join(_KINDS)}, such as `alphabetic: [0.6, 1]`."
            )
        return self

    def check(self, text: str) -> None:
        if not text:
            return
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        counts = np.bincount(_classes()[points], minlength=64)
        for name, (kind, among) in _KINDS.items():
            bounds: tuple[float, float] | None = getattr(self, name)
            total = len(points) if among is None else _count(counts, among)
            if bounds is None or not total:
                continue
            share = _count(counts, kind) / total
            if share < bounds[0]:
                raise Dropped(f"too few {name}")
            if share > bounds[1]:
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
    """The kinds of each code point as bits, uint8 [0x110000]; computed once in a process, in a third of a second."""
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
