"""Near-duplicates: MinHash signatures, locality-sensitive hashing, connected components.

    a text ─▶ its shingles, runs of words ─▶ the least of each of many permutations of them: its signature
    signature, cut into bands ─▶ a key a band ─▶ texts with a key in common are joined ─▶ components

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
from maas_ray.spec import Spec

_CHUNK = 1 << 15
"""Shingles that are permuted at once: they stay in a core's cache."""
_CHARACTERS = 1 << 20
"""Characters of texts that are cut into words at once."""


class NearDuplicates(Spec):
    """When two texts count as the same but for small edits."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of shingles from which two texts are likely found, in (0, 1]. With `bands`, these decide."""
    permutations: int = Field(128, ge=1, le=4096)
    """Most minima in a text's signature. More tell similarities apart more sharply, and cost as much more time."""
    bands: int | None = Field(None, ge=1)
    """Parts the signature is cut into; each takes 40 bytes a row in the cluster. None: what fits the threshold best."""
    shingle: int = Field(5, ge=1, le=100)
    """Words in a shingle; characters, where a script has no spaces. A text of fewer words is one shingle."""

    @model_validator(mode="after")
    def _bands_fit(self) -> "NearDuplicates":
        if self.bands is not None and self.bands > self.permutations:
            raise ValueError(
                f"bands ({self.bands}) is more than permutations ({self.permutations}), which are divided among them; "
                "give more permutations, or fewer bands."
            )
        return self

    @property
    def resolved_bands(self) -> int:
        """Bands: as given, or for the threshold."""
        return self.bands or best_bands(self.threshold, self.permutations)[0]

    @property
    def rows_per_band(self) -> int:
        """Minima in a band. Permutations that do not divide evenly among the bands are left out."""
        return self.permutations // self.bands if self.bands else best_bands(self.threshold, self.permutations)[1]

    def probability(self, similarity: float | np.ndarray) -> float | np.ndarray:
        """Of finding a pair of this Jaccard similarity: the S-curve."""
        return 1 - (1 - similarity**self.rows_per_band) ** self.resolved_bands


@cache
def best_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows that err least, of those that find a pair at the threshold more often than not.

    A pair at (1/b)^(1/r), where the S-curve is steepest, is found with a probability of about 1 − 1/e. That must not
    lie above the threshold; among the b and r that leaves, the area under the curve below the threshold and above it
    beyond (wrongly found, missed) is least, as datasketch chooses them (Zhu, Nargesian, Pu and Miller 2016, "LSH
    Ensemble").
    """
    similarities = (np.arange(1000) + 0.5) / 1000
    below = similarities < threshold
    best = (np.inf, permutations, 1)
    for rows in range(1, permutations + 1):
        for bands in range(1, permutations // rows + 1):
            if bands * threshold**rows >= 1:
                found = 1 - (1 - similarities**rows) ** bands
                best = min(best, (float(np.where(below, found, 1 - found).sum()), bands, rows))
    return best[1], best[2]


def band_keys(text: str, spec: NearDuplicates) -> np.ndarray:
    """The keys of a text's bands, uint64 [bands]; [0] where it has no word."""
    return band_keys_of([text], spec)[1].reshape(-1)


def band_keys_of(texts: Iterable[str], spec: NearDuplicates) -> tuple[np.ndarray, np.ndarray]:
    """The keys of many texts' bands, which is several times as fast as one by one.

    Returns:
        places of the texts that have words, int64 [n], ascending; and their keys, uint64 [n, bands]. Different bands'
        keys differ, so one column may hold all.
    """
    places, keys = [np.empty(0, np.int64)], [np.empty((0, spec.resolved_bands), np.uint64)]
    before = 0
    for some in _batched(texts):
        shingles, counts = gram_hashes(some, spec.shingle)
        worded = np.flatnonzero(counts)
        if len(worded):
            places.append(before + worded)
            keys.append(_keys(_signatures(shingles, counts[worded], spec), spec))
        before += len(some)
    return np.concatenate(places), np.concatenate(keys)


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
    (Dietzfelbinger 1996; Thorup 2015, "High speed hashing for integers and strings"). Of shingles that are random by
    their own hash, that is as good as truly random (Mitzenmacher and Vadhan 2008), and needs no division, unlike the
    family modulo 2^61 − 1 that datasketch and datatrove take. The shift does not change which is least, so it is done
    once, at the end.
    """
    used = spec.resolved_bands * spec.rows_per_band
    factors, terms = _permutations(used)
    shingles = shingles >> np.uint64(32)
    starts = np.cumsum(counts) - counts
    least = np.full((used, len(counts)), np.iinfo(np.uint64).max, np.uint64)
    room = np.empty(min(_CHUNK, len(shingles)), np.uint64)
    for begin in range(0, len(shingles), _CHUNK):
        chunk = shingles[begin : begin + _CHUNK]
        permuted = room[: len(chunk)]
        # The texts that this chunk has some of; the first of them may have begun before.
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, begin + len(chunk)))
        bounds = np.maximum(starts[first:last] - begin, 0)
        for number in range(used):
            np.multiply(chunk, factors[number], out=permuted)
            np.add(permuted, terms[number], out=permuted)
            found = least[number, first:last]
            np.minimum(found, np.minimum.reduceat(permuted, bounds), out=found)
    return least >> np.uint64(32)


@cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and terms, uint64 [count] each: the first digits of one endless stream, the same for ever."""
    drawn = np.frombuffer(shake_256(b"maas_ray minhash").digest(16 * count), "<u8").reshape(count, 2)
    return drawn[:, 0].astype(np.uint64), drawn[:, 1].astype(np.uint64)


def _keys(signatures: np.ndarray, spec: NearDuplicates) -> np.ndarray:
    """Each band's number and minima as one number, uint64 [texts, bands]."""
    bands, rows = spec.resolved_bands, spec.rows_per_band
    minima = signatures.reshape(bands, rows, -1)
    keys = np.broadcast_to(mixed(np.arange(1, bands + 1, dtype=np.uint64))[:, None], minima[:, 0].shape)
    for row in range(rows):
        keys = mixed(keys ^ minima[:, row])
    return np.ascontiguousarray(keys.T)


def edges(keys: np.ndarray, ids: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join the rows that share a key: from each that is not its group's first to the one that is.

    All entries of a key must be given together; in whatever order, the answer is the same. It is a spanning forest:
    no more edges than rows.

    Args:
        keys: any comparable numbers [n].
        ids: of rows, int64 [n]; a row may stand under many keys.
        ranks: of the same rows, int64 [n]; the first of a group has the least, then the least id.

    Returns:
        the rows and the first of each one's group, int64 [m] each, ordered by the rows' ids.
    """
    order = np.lexsort((ids, ranks, keys))
    keys, rows = keys[order], ids[order]
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    heads = rows[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(rows) else rows
    differ = heads != rows
    if not differ.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    members, labels = components(np.column_stack([rows[differ], heads[differ]]))
    known, where = np.unique(ids, return_index=True)
    kept = representatives(members, labels, ranks[where[np.searchsorted(known, members)]])
    apart = kept != members
    return members[apart], kept[apart]


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of the graph with these edges.

    Takes about 90 bytes an edge at its peak.

    Args:
        pairs: ids of rows, int64 [n, 2].

    Returns:
        the ids that stand in any pair, int64 [m], ascending; and the number of each one's component, int64 [m].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, places = np.unique(pairs, return_inverse=True)
    if not len(ids):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = places.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids)))
    return ids, connected_components(graph, directed=False)[1].astype(np.int64)


def representatives(ids: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The row that stands for each: of its component the one of least rank, and among equals of least id; int64 [n]."""
    order = np.lexsort((ids, ranks, labels))
    new = np.ones(len(order), bool)
    new[1:] = labels[order][1:] != labels[order][:-1]
    firsts = ids[order][np.flatnonzero(new)[np.cumsum(new) - 1]] if len(ids) else ids
    found = np.empty_like(ids)
    found[order] = firsts
    return found
