"""Decontamination: drop training rows that share text with held-out rows, found by n-grams of words.

The method is GPT-3's (Brown et al. 2020, appendix C): runs of 13 words, in lower case and without punctuation. A score
on text that a model has memorised says nothing. `minhash` finds near-duplicates of whole rows; this module finds a test
row that is quoted in a longer training row.
"""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from maas_ray.data.dedup.normalise import run_hashes, word_hashes
from maas_ray.spec import Spec


class Decontaminate(Spec):
    """Which training rows are dropped because they share text with held-out rows."""

    ngram: int = Field(13, ge=1, le=1000)
    """Number of words in an n-gram. A lower number finds more, also common phrases; GPT-3 used 13. A held-out text of
    fewer words is searched for as a whole, if it has at least 5."""
    min_overlap: float = Field(0.0, ge=0, le=1)
    """Minimum share of a training row's n-grams in held-out rows, in [0, 1]. 0: one shared n-gram is enough."""

    def contaminates(self, share: float) -> bool:
        """True if a row is dropped when this share of its n-grams is in held-out rows."""
        return share > 0 and share >= self.min_overlap


MIN_WORDS = 5
"""A held-out text of fewer words is too common a phrase to be searched for within other texts."""


def held_out_runs(text: str, ngram: int) -> tuple[int, np.ndarray]:
    """The runs of a held-out text that training rows must not hold: their length in words, and the distinct runs.

    A text of fewer than `ngram` words is one run of its own length. 0 words: it has none.
    """
    hashes = word_hashes(text)
    length = min(ngram, len(hashes))
    runs = [runs for _, runs in run_hashes(hashes, [length] if length else [])]
    return length, np.unique(runs[0]) if runs else hashes


class HeldOutRuns:
    """The runs of all held-out texts, at 8 bytes for each distinct one in every process that uses them.

    Args:
        runs: arrays of runs with their length in words, in any order and with repetitions.
        ngram: number of words in an n-gram.
    """

    def __init__(self, runs: Iterable[tuple[int, np.ndarray]], ngram: int) -> None:
        self._min_words = min(MIN_WORDS, ngram)
        by_length: dict[int, list[np.ndarray]] = {}
        for length, hashes in runs:
            by_length.setdefault(length, []).append(hashes)
        self.by_length = {
            length: np.unique(np.concatenate(by_length[length])) for length in sorted(by_length) if length
        }

    def overlap(self, text: str) -> float:
        """The share of a training row's distinct runs that are held out: the largest over the lengths of runs.

        Runs of fewer than `MIN_WORDS` words count only if they are the whole row.
        """
        hashes = word_hashes(text)
        lengths = [length for length in self.by_length if length >= self._min_words or length == len(hashes)]
        return max((self._share(length, np.unique(runs)) for length, runs in run_hashes(hashes, lengths)), default=0.0)

    def _share(self, length: int, runs: np.ndarray) -> float:
        known = self.by_length[length]
        indices = np.searchsorted(known, runs).clip(max=len(known) - 1)
        return float(np.count_nonzero(known[indices] == runs) / len(runs))
