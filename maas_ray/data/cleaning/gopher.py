"""`gopher_repetition` and `gopher_quality`: the filters of Gopher's training data.

Rae et al. (2021), "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
https://arxiv.org/abs/2112.11446, section A1.1 and table A1. Choices that the paper leaves open follow datatrove
(https://github.com/huggingface/datatrove), which created FineWeb. Words are separated by white space, so a script
without white space needs other filters.
"""

import re
from collections.abc import Iterable
from itertools import accumulate
from string import punctuation
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from maas_ray.data.cleaning.base import Dropped
from maas_ray.data.cleaning.base.text import TextFilter
from maas_ray.errors import InvalidError

_Share = Annotated[float, Field(ge=0, le=1)]
_Size = Annotated[int, Field(ge=2, le=100)]
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


class GopherRepetition(TextFilter):
    """`{step: gopher_repetition}`: drops text that repeats itself. A share of 1 disables a rule."""

    step: Literal["gopher_repetition"] = "gopher_repetition"
    """Name of the step."""
    max_duplicate_lines: _Share = 0.30
    """Maximum share of lines that occurred earlier in the text."""
    max_duplicate_paragraphs: _Share = 0.30
    """Maximum share of paragraphs, separated by blank lines, that occurred earlier in the text."""
    max_duplicate_line_characters: _Share = 0.20
    """Maximum share of characters in such lines."""
    max_duplicate_paragraph_characters: _Share = 0.20
    """Maximum share of characters in such paragraphs."""
    max_top_ngram: dict[_Size, _Share] = {2: 0.20, 3: 0.18, 4: 0.16}
    """Maximum share of characters in the most common sequence of n words, by n."""
    max_duplicate_ngrams: dict[_Size, _Share] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    """Maximum share of characters in sequences of n words that occurred earlier in the text, by n."""

    def check(self, text: str) -> None:
        if not text.strip():
            return
        for kind, parts, max_share, max_characters in (
            (
                "paragraphs",
                _PARAGRAPHS.split(text.strip()),
                self.max_duplicate_paragraphs,
                self.max_duplicate_paragraph_characters,
            ),
            ("lines", _LINES.split(text), self.max_duplicate_lines, self.max_duplicate_line_characters),
        ):
            count, characters = _duplicates(parts)
            if count / len(parts) > max_share:
                raise Dropped(f"duplicate {kind}")
            if characters / len(text) > max_characters:
                raise Dropped(f"characters in duplicate {kind}")
        words = _Words(text.split())
        for size in range(2, max([*self.max_top_ngram, *self.max_duplicate_ngrams], default=0) + 1):
            if not words.grow():
                return  # no longer sequence can occur twice either
            max_share = self.max_top_ngram.get(size, 1.0)
            if max_share < 1 and words.top() / len(text) > max_share:
                raise Dropped(f"top {size}-gram")
            max_share = self.max_duplicate_ngrams.get(size, 1.0)
            if max_share < 1 and words.duplicated() / len(text) > max_share:
                raise Dropped(f"duplicate {size}-grams")


def _duplicates(parts: Iterable[str]) -> tuple[int, int]:
    """Number of parts that occurred earlier, and of their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


class _Words:
    """The n-grams of a text; `grow` raises n by one. Each distinct n-gram has a number, so nothing is hashed."""

    def __init__(self, words: list[str]) -> None:
        numbers: dict[str, int] = {}
        self._words = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
        self._ends = np.fromiter(accumulate(map(len, words), initial=0), np.int64)
        self._size, self._ngrams = 1, self._words

    def grow(self) -> bool:
        """Go on to n-grams with one more word; says whether any of them occurs twice."""
        pairs = self._ngrams[:-1] * (len(self._words) + 1) + self._words[self._size :]
        self._size += 1
        _, self._first, self._ngrams, self._counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        return bool(len(pairs)) and int(self._counts.max()) > 1

    def _characters(self, start: int) -> int:
        return int(self._ends[start + self._size] - self._ends[start])

    def top(self) -> int:
        """Characters in all occurrences of the most common n-gram, inner spaces included; the first one of several."""
        count = int(self._counts.max())
        start = int(self._first[self._counts == count].min())
        return count * (self._characters(start) + self._size - 1)

    def duplicated(self) -> int:
        """Characters of n-grams that occurred earlier. Overlapping n-grams are not counted twice."""
        ngrams, total, start = self._ngrams.tolist(), 0, 0
        seen: set[int] = set()
        while start < len(ngrams):
            if ngrams[start] in seen:
                total += self._characters(start)
                start += self._size
            else:
                seen.add(ngrams[start])
                start += 1
        return total


class GopherQuality(TextFilter):
    """`{step: gopher_quality}`: drops text that is not prose."""

    step: Literal["gopher_quality"] = "gopher_quality"
    """Name of the step."""
    min_words: int = Field(50, ge=0)
    """Minimum number of words with a letter or a digit."""
    max_words: int = Field(100_000, ge=1)
    """Maximum number of words with a letter or a digit."""
    min_mean_word_length: float = Field(3, ge=0)
    """Minimum mean length of these words in characters, without the punctuation around them."""
    max_mean_word_length: float = Field(10, gt=0)
    """Maximum mean length of these words in characters."""
    max_symbols_per_word: float = Field(0.1, ge=0)
    """Maximum number of hash signs, and of ellipses, for each word."""
    max_bullet_lines: _Share = 0.9
    """Maximum share of lines that begin with a bullet point."""
    max_ellipsis_lines: _Share = 0.3
    """Maximum share of lines that end with an ellipsis."""
    min_alphabetic_words: _Share = 0.8
    """Minimum share of words with a letter."""
    min_stop_words: int = Field(2, ge=0)
    """Minimum number of different `stop_words`. 0: none, for languages other than that of the words."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that prose usually contains."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_words > self.max_words:
            raise InvalidError(
                "bounds_crossed", f"min_words ({self.min_words}) is more than max_words ({self.max_words})."
            )
        if self.min_mean_word_length > self.max_mean_word_length:
            raise InvalidError(
                "bounds_crossed",
                f"min_mean_word_length ({self.min_mean_word_length:g}) is more than max_mean_word_length "
                f"({self.max_mean_word_length:g}).",
            )
        if self.min_stop_words > len(set(self.stop_words)):
            raise InvalidError(
                "bounds_crossed",
                f"min_stop_words ({self.min_stop_words}) is more than the number of stop_words "
                f"({len(set(self.stop_words))}).",
            )
        return self

    def check(self, text: str) -> None:
        words = text.split()
        bare = [word for word in (word.strip(_PUNCTUATION) for word in words) if word]
        if len(bare) < self.min_words:
            raise Dropped("too few words")
        if len(bare) > self.max_words:
            raise Dropped("too many words")
        if not bare:
            return
        length = sum(map(len, bare)) / len(bare)
        if length < self.min_mean_word_length:
            raise Dropped("words are too short")
        if length > self.max_mean_word_length:
            raise Dropped("words are too long")
        if text.count("#") / len(words) > self.max_symbols_per_word:
            raise Dropped("too many hash signs")
        if (text.count("...") + text.count("…")) / len(words) > self.max_symbols_per_word:
            raise Dropped("too many ellipses")
        lines = text.splitlines()
        if sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines) > self.max_bullet_lines:
            raise Dropped("too many bullet points")
        if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > self.max_ellipsis_lines:
            raise Dropped("too many lines that end with an ellipsis")
        if sum(map(_has_letter, words)) / len(words) < self.min_alphabetic_words:
            raise Dropped("too few words with letters")
        if len(set(self.stop_words).intersection(map(str.lower, bare))) < self.min_stop_words:
            raise Dropped("too few stop words")


_PUNCTUATION = punctuation + "…–—‘’“”«»„‚•·¿¡、。，；：？！「」『』（）《》،؛؟"
_BULLETS = ("•", "‣", "◦", "⁃", "-", "*")


def _has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))
