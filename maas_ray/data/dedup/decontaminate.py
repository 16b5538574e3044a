"""Decontamination: drop training rows that share text with held-out rows, found by n-grams of words.

The method is GPT-3's (Brown et al. 2020, appendix C): runs of 13 words, in lower case and without punctuation. A score
on text that a model has memorised says nothing. `minhash` finds near-duplicates of whole rows; this module finds a test
row that is quoted in a longer training row.
"""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from maas_ray.data.dedup.normalise import gram_hashes
from maas_ray.spec import Spec


class Decontaminate(Spec):
    """Which training rows are dropped because they share text with held-out rows."""

    ngram: int = Field(13, ge=1, le=1000)
    """Number of words in an n-gram. A lower number finds more, also common phrases; GPT-3 used 13."""
    min_overlap: float = Field(0.0, ge=0, le=1)
    """Minimum share of a training row's n-grams in held-out rows, in [0, 1]. 0: one shared n-gram is enough."""

    def contaminates(self, share: float) -> bool:
        """True if a row is dropped when this share of its n-grams is in held-out rows."""
        return share > 0 and share >= self.min_overlap


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """The distinct n-grams of a text as hashes, uint64, sorted. A text of fewer than `n` words is one n-gram."""
    return np.unique(gram_hashes([text], n)[0])


class NgramIndex:
    """The n-grams of all held-out rows, at 8 bytes for each distinct one in every process that uses the index."""

    def __init__(self, hashes: Iterable[np.ndarray]) -> None:
        """Create the index from arrays of hashes, in any order and with repetitions."""
        self.hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))

    def __len__(self) -> int:
        return len(self.hashes)

    def contains(self, hashes: np.ndarray) -> float:
        """The share of these n-grams that is in the index; 0 for no n-grams."""
        if not len(hashes) or not len(self.hashes):
            return 0.0
        indices = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return float(np.count_nonzero(self.hashes[indices] == hashes) / len(hashes))
