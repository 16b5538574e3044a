"""Near-duplicates: MinHash signatures and locality-sensitive hashing.

    a text ─▶ its shingles, runs of words ─▶ the minimum of each of many permutations of them: its signature
    signature, cut into bands ─▶ a key for each band ─▶ texts with a key in common are joined ─▶ components

Two texts agree in one minimum with the probability of their shingles' Jaccard similarity s (Broder 1997, "On the
resemblance and containment of documents"), and so in at least one of b bands of r minima with 1 − (1 − s^r)^b (Indyk
and Motwani 1998; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3). Pure functions: the same
texts have the same keys on any machine, in any order.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import shake_256

import numpy as np
from pydantic import Field, model_validator

from maas_ray.data.dedup.normalise import gram_hashes
from maas_ray.data.splits.hashing import mixed
from maas_ray.errors import InvalidError
from maas_ray.spec import Spec

_CHUNK = 1 << 15
"""Shingles that are permuted at once, so that they fit into a core's cache."""
_CHARACTERS = 4 << 20
"""Characters of the texts that are cut into words at once. More share more words, and fit less into a core's cache."""


class NearDuplicates(Spec):
    """How near-duplicate texts are found: texts that differ in small edits."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of shingles from which two texts are likely found, in (0, 1]. `bands` takes precedence."""
    permutations: int = Field(128, ge=1, le=4096)
    """Maximum number of minima in a text's signature. More minima make the threshold sharper and take more time."""
    bands: int | None = Field(None, ge=1)
    """Number of parts that a signature is cut into, at 40 bytes a row each in the cluster. None: the best number for
    the threshold."""
    shingle: int = Field(5, ge=1, le=100)
    """Number of words in a shingle; of characters in a script without spaces. A text of fewer words is one shingle."""

    @model_validator(mode="after")
    def _bands_fit(self) -> "NearDuplicates":
        if self.bands is not None and self.bands > self.permutations:
            raise InvalidError(
                "bounds_crossed",
                f"bands ({self.bands}) is more than permutations ({self.permutations}), which are divided among them; "
                "give more permutations, or fewer bands.",
            )
        return self

    @property
    def resolved_bands(self) -> int:
        """Number of bands: as given, or the best for the threshold."""
        return self.bands or best_bands(self.threshold, self.permutations)[0]

    @property
    def rows_per_band(self) -> int:
        """Number of minima in a band. Permutations that do not divide evenly among the bands are not used."""
        return self.permutations // self.bands if self.bands else best_bands(self.threshold, self.permutations)[1]

    def probability(self, similarity: float | np.ndarray) -> float | np.ndarray:
        """Probability of finding a pair of this Jaccard similarity: the S-curve."""
        return 1 - (1 - similarity**self.rows_per_band) ** self.resolved_bands


@cache
def best_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """The bands and rows with the smallest error among those that find a pair at the threshold more often than not.

    A pair at (1/b)^(1/r), the steepest part of the S-curve, is found with a probability of about 1 − 1/e. That
    similarity must not be above the threshold. Among the remaining b and r, the area under the curve below the
    threshold plus the area above the curve beyond it (wrongly found, missed) is minimal, as in datasketch (Zhu,
    Nargesian, Pu and Miller 2016, "LSH Ensemble").
    """
    similarities = (np.arange(1000) + 0.5) / 1000
    below = similarities < threshold
    best = (np.inf, permutations, 1)
    for rows in range(1, permutations + 1):
        for bands in range(1, permutations // rows + 1):
            if bands * threshold**rows >= 1:
                curve = 1 - (1 - similarities**rows) ** bands
                best = min(best, (float(np.where(below, curve, 1 - curve).sum()), bands, rows))
    return best[1], best[2]


def band_keys(text: str, spec: NearDuplicates) -> np.ndarray:
    """The keys of a text's bands, uint64 [bands]; [0] if it has no words."""
    return band_keys_of([text], spec)[1].reshape(-1)


def band_keys_of(texts: Iterable[str], spec: NearDuplicates) -> tuple[np.ndarray, np.ndarray]:
    """The keys of the bands of many texts, which is several times as fast as text by text.

    Returns:
        The indices of the texts that have words, int64 [n], ascending; and their keys, uint64 [n, bands]. Keys of
        different bands differ, so one column can hold all of them.
    """
    indices, keys = [np.empty(0, np.int64)], [np.empty((0, spec.resolved_bands), np.uint64)]
    before = 0
    for some in _batched(texts):
        shingles, counts = gram_hashes(some, spec.shingle)
        worded = np.flatnonzero(counts)
        if len(worded):
            indices.append(before + worded)
            keys.append(_keys(_signatures(shingles, counts[worded], spec), spec))
        before += len(some)
    return np.concatenate(indices), np.concatenate(keys)


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _signatures(shingles: np.ndarray, counts: np.ndarray, spec: NearDuplicates) -> np.ndarray:
    """The minima of each text, uint64 [permutations in use, texts], below 2**32; none of the counts is 0.

    A permutation is x ↦ (a x + b) >> 32 of a 32-bit x with random 64-bit a and b: multiply-shift, strongly universal
    (Dietzfelbinger 1996; Thorup 2015, "High speed hashing for integers and strings"). For shingles that are hashes
    already, that is as good as truly random (Mitzenmacher and Vadhan 2008), and needs no division, unlike the family
    modulo 2^61 − 1 of datasketch and datatrove. The shift does not change the minimum, so it is done once, at the end.
    """
    used = spec.resolved_bands * spec.rows_per_band
    factors, terms = _permutations(used)
    shingles = shingles >> np.uint64(32)
    starts = np.cumsum(counts) - counts
    minima = np.full((used, len(counts)), np.iinfo(np.uint64).max, np.uint64)
    room = np.empty(min(_CHUNK, len(shingles)), np.uint64)
    for begin in range(0, len(shingles), _CHUNK):
        chunk = shingles[begin : begin + _CHUNK]
        permuted = room[: len(chunk)]
        # The texts with shingles in this chunk. The first of them may begin in an earlier chunk.
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, begin + len(chunk)))
        bounds = np.maximum(starts[first:last] - begin, 0)
        for number in range(used):
            np.multiply(chunk, factors[number], out=permuted)
            np.add(permuted, terms[number], out=permuted)
            some = minima[number, first:last]
            np.minimum(some, np.minimum.reduceat(permuted, bounds), out=some)
    return minima >> np.uint64(32)


@cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and terms, uint64 [count] each: the beginning of one endless stream that never changes."""
    drawn = np.frombuffer(shake_256(b"maas_ray minhash").digest(16 * count), "<u8").reshape(count, 2)
    return drawn[:, 0].astype(np.uint64), drawn[:, 1].astype(np.uint64)


def _keys(signatures: np.ndarray, spec: NearDuplicates) -> np.ndarray:
    """The number and the minima of each band as one number, uint64 [texts, bands]."""
    bands, rows = spec.resolved_bands, spec.rows_per_band
    minima = signatures.reshape(bands, rows, -1)
    keys = np.broadcast_to(mixed(np.arange(1, bands + 1, dtype=np.uint64))[:, None], minima[:, 0].shape)
    for row in range(rows):
        keys = mixed(keys ^ minima[:, row])
    return np.ascontiguousarray(keys.T)
