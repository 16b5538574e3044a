"""`length`: drops texts that are too short or too long."""

from typing import Literal, Self

from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.base.text import TextFilter
from maas_ray.errors import InvalidError


class Length(TextFilter):
    """`{step: length, min_words: 5}`"""

    step: Literal["length"] = "length"
    """Name of the step."""
    min_characters: int | None = Field(None, ge=0)
    """Minimum number of Unicode characters. None: no limit."""
    max_characters: int | None = Field(None, ge=1)
    """Maximum number of Unicode characters. None: no limit."""
    min_words: int | None = Field(None, ge=0)
    """Minimum number of words between white space. For a script without white space, use characters. None: no limit."""
    max_words: int | None = Field(None, ge=1)
    """Maximum number of words. None: no limit."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        bounds = {"characters": (self.min_characters, self.max_characters), "words": (self.min_words, self.max_words)}
        if all(bound is None for pair in bounds.values() for bound in pair):
            raise InvalidError(
                "no_limit", "no limit is set; set min_characters, max_characters, min_words or max_words."
            )
        for unit, (low, high) in bounds.items():
            if low is not None and high is not None and low > high:
                raise InvalidError("bounds_crossed", f"min_{unit} ({low}) is more than max_{unit} ({high}).")
        return self

    def check(self, text: str) -> None:
        for unit, low, high in (
            ("characters", self.min_characters, self.max_characters),
            ("words", self.min_words, self.max_words),
        ):
            if low is None and high is None:
                continue
            count = len(text) if unit == "characters" else len(text.split())
            if low is not None and count < low:
                raise Dropped(f"too few {unit}")
            if high is not None and count > high:
                raise Dropped(f"too many {unit}")
