"""`language`: drops texts in other languages, recognised by py3langid, whose wheel contains the model.

The model is a naive Bayes classifier over byte n-grams (Lui and Baldwin 2012, "langid.py: An off-the-shelf language
identification tool").
"""

from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.base.text import TextFilter
from maas_ray.errors import InvalidError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


class Language(TextFilter):
    """`{step: language, languages: [en, de]}`"""

    step: Literal["language"] = "language"
    """Name of the step."""
    languages: tuple[str, ...] = Field(min_length=1)
    """Languages to keep, by ISO 639: `en`, `zh`."""
    min_probability: float = Field(0.5, ge=0, le=1)
    """Minimum probability of the most likely language, among all languages of the model."""
    sample_characters: int = Field(4000, ge=20)
    """Number of characters to check, from the middle of a text, because its ends are often in another language."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        labels = _identifier().labels
        if unknown := [name for name in languages if name not in labels]:
            raise InvalidError(
                "unknown_language", f"unknown language {unknown[0]!r}; available: {', '.join(sorted(labels))}."
            )
        return languages

    def check(self, text: str) -> None:
        start = max(0, (len(text) - self.sample_characters) // 2)
        language, probability = _identifier().classify(text[start : start + self.sample_characters])
        if probability < self.min_probability:
            raise Dropped("language is uncertain")
        if language not in self.languages:
            raise Dropped(f"language is {language}")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
