"""`audio`: drops sound that is silent, clipped, too short or too long, and finds corrupt files. It decodes as the
tasks do.
"""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import CleaningStep, Dropped, Notes, named
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row
from maas_ray.tasks.speech import audio

_FULL_SCALE = 0.99
"""Level of a sample that counts as clipped: the loudest sample of 8 bits is 127/128."""


class Audio(CleaningStep):
    """`{step: audio, min_seconds: 0.5}`"""

    step: Literal["audio"] = "audio"
    """Name of the step."""
    column: str = Field("audio", min_length=1)
    """Column of audio files."""
    min_seconds: float = Field(0.1, ge=0)
    """Minimum length, seconds."""
    max_seconds: float = Field(600, gt=0)
    """Maximum length, seconds. No more than this is decoded of a longer file."""
    min_dbfs: float | None = Field(-60.0, le=0)
    """Minimum loudness: root mean square of the samples, decibels below full scale. None: silence is kept."""
    max_clipped: float = Field(0.01, ge=0, le=1)
    """Maximum share of samples at full scale, which means that the recording was too loud. 1: no limit."""
    corrupt: Literal["quarantine", "drop"] = "quarantine"
    """Outcome of a file that cannot be decoded."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise InvalidError(
                "bounds_crossed",
                f"min_seconds ({self.min_seconds:g}) is more than max_seconds ({self.max_seconds:g}).",
            )
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def clean(self, row: Row, notes: Notes) -> Row:
        content = named(row, self.column)
        if content is None:
            return row  # the task counts it as empty
        if not isinstance(content, bytes):
            raise InvalidError("not_bytes", f"{self.column} is a {type(content).__name__}, not the bytes of a file")
        try:
            samples, rate = audio.decode_at_own_rate(content, self.max_seconds)
        except ValueError as error:
            if self.corrupt == "drop":
                raise Dropped("corrupt") from None
            raise InvalidError("corrupt_audio", f"{self.column}: {error}") from error
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
