"""N-grams (placeholder of the branch that brings the whole)."""

from collections.abc import Iterable

import numpy as np
import xxhash

from maas_ray.spec import Spec


class Decontaminate(Spec):
    """Which rows to train on share too much with rows to evaluate with."""

    ngram: int = 13
    """Words."""

    def contaminates(self, share: float) -> bool:
        """Whether so large a share is too much."""
        return share > 0


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """Hashes."""
    words = text.lower().split()
    grams = [" ".join(words[at : at + n]) for at in range(max(1, len(words) - n + 1))]
    return np.array([xxhash.xxh3_64_intdigest(gram.encode()) for gram in grams], np.uint64)


class NgramIndex:
    """Known n-grams."""

    def __init__(self, parts: Iterable[np.ndarray]) -> None:
        self.known = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))

    def contains(self, hashes: np.ndarray) -> float:
        """Share."""
        return float(np.isin(hashes, self.known).mean()) if len(hashes) else 0.0
