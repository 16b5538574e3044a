"""`language`: texts in other languages than those wanted, told by py3langid, whose model lies in its wheel.

A naive Bayes classifier over byte n-grams (Lui and Baldwin 2012, "langid.py: An off-the-shelf language identification
tool").
"""

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.texts import TextFilter

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


class Language(TextFilter):
    """`{step: language, languages: [en, de]}`"""

    step: Literal["language"] = "language"
    """Which step."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Languages that texts may be in, ISO 639: `en`, `zh`."""
    min_probability: float = Field(0.5, ge=0, le=1)
    """Least probability of the likeliest language, among all that the model knows."""
    sample_characters: int = Field(4000, ge=20)
    """Characters of a text that are looked at, those in its middle: its ends are often in another language."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        labels = _identifier().labels
        if unknown := [name for name in languages if name not in labels]:
            raise ValueError(
                f"{unknown[0]!r} is no language that the model knows; it knows {', '.join(sorted(labels))}."
            )
        return languages

    def check(self, text: str) -> None:
        start = max(0, (len(text) - self.sample_characters) // 2)
        found, probability = _identifier().classify(text[start : start + self.sample_characters])
        if probability < self.min_probability:
            raise Dropped("language is uncertain")
        if found not in self.languages:
            raise Dropped(f"language is {found}")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
