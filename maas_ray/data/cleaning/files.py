"""`image` and `audio`: files that do not decode, are too small, or hold nothing. They are decoded as the tasks do."""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, named
from maas_ray.tasks.rows import Row
from maas_ray.tasks.speech import audio
from maas_ray.tasks.vision import images

_FULL_SCALE = 0.99
"""Of a sample that is as loud as can be: 8 bits go to 127/128."""


class Image(CleaningStep):
    """`{step: image, min_side: 32}`"""

    step: Literal["image"] = "image"
    """Which step."""
    column: str = Field("image", min_length=1)
    """Column of image files."""
    min_side: int = Field(1, ge=1)
    """Least pixels of the shorter side."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Most times that the longer side is as long as the shorter. None: any."""
    max_pixels: int = Field(images.MOST_PIXELS, ge=1)
    """Most pixels in all; an image that has more is not decoded, and counts as corrupt."""
    min_contrast: int = Field(1, ge=0, le=255)
    """Least range from the darkest to the lightest value, of 255, in some channel. 0: blank images stay."""
    corrupt: Literal["quarantine", "drop"] = "quarantine"
    """What becomes of a file that is no image of BMP, GIF, JPEG, PNG, TIFF or WebP, or does not decode."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def clean(self, row: Row, notes: Notes) -> Row:
        content = named(row, self.column)
        if content is None:
            return row  # the task counts it as empty
        try:
            pixels = images.decode(content, most=self.max_pixels, formats=images.FORMATS)
        except ValueError as error:
            if self.corrupt == "drop":
                raise Dropped("corrupt") from None
            raise ValueError(f"{self.column}: {error}") from error
        shorter, longer = sorted(pixels.shape[:2])
        if shorter < self.min_side:
            raise Dropped("too small")
        if self.max_aspect_ratio is not None and longer > self.max_aspect_ratio * shorter:
            raise Dropped("too long and thin")
        if int((pixels.max((0, 1)).astype(int) - pixels.min((0, 1))).max()) < self.min_contrast:
            raise Dropped("blank")
        return row


class Audio(CleaningStep):
    """`{step: audio, min_seconds: 0.5}`"""

    step: Literal["audio"] = "audio"
    """Which step."""
    column: str = Field("audio", min_length=1)
    """Column of audio files."""
    min_seconds: float = Field(0.1, ge=0)
    """Least length."""
    max_seconds: float = Field(600, gt=0)
    """Most; of a longer one, no more than this is decoded."""
    min_dbfs: float | None = Field(-60.0, le=0)
    """Least loudness: root mean square of the samples, decibels below full scale. None: silence stays."""
    max_clipped: float = Field(0.01, ge=0, le=1)
    """Most share of samples at full scale, where the recording was too loud. 1: any."""
    corrupt: Literal["quarantine", "drop"] = "quarantine"
    """What becomes of a file that does not decode."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds:g}) is more than max_seconds ({self.max_seconds:g}).")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def clean(self, row: Row, notes: Notes) -> Row:
        content = named(row, self.column)
        if content is None:
            return row  # the task counts it as empty
        if not isinstance(content, bytes):
            raise ValueError(f"{self.column} is a {type(content).__name__}, not a file's bytes")
        try:
            samples, rate = audio.decode_at_own_rate(content, self.max_seconds)
        except ValueError as error:
            if self.corrupt == "drop":
                raise Dropped("corrupt") from None
            raise ValueError(f"{self.column}: {error}") from error
        if len(samples) > self.max_seconds * rate:
            raise Dropped("too long")
        if len(samples) < max(1, self.min_seconds * rate):
            raise Dropped("too short")
        if self.min_dbfs is not None and _dbfs(samples) < self.min_dbfs:
            raise Dropped("silent")
        if float((np.abs(samples) >= _FULL_SCALE).mean()) > self.max_clipped:
            raise Dropped("clipped")
        return row


def _dbfs(samples: np.ndarray) -> float:
    square = float(np.mean(np.square(samples, dtype=np.float64)))
    return 10 * math.log10(square) if square else -math.inf
