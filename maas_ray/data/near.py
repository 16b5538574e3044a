"""Near-duplicates: MinHash signatures cut into bands (placeholder of the branch that brings the whole)."""

import numpy as np
import xxhash
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from maas_ray.spec import Spec


class NearDuplicates(Spec):
    """How texts that are nearly the same are found."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity."""
    permutations: int = 112
    """Permutations."""
    bands: int | None = None
    """Bands."""
    shingle: int = 5
    """Words."""

    @property
    def resolved_bands(self) -> int:
        """Bands."""
        return self.bands or 14


def band_keys(text: str, spec: NearDuplicates) -> np.ndarray:
    """Keys of the bands of a text."""
    words = text.lower().split()
    if not words:
        return np.zeros(0, np.uint64)
    shingles = [" ".join(words[at : at + spec.shingle]) for at in range(max(1, len(words) - spec.shingle + 1))]
    hashes = np.array([xxhash.xxh3_64_intdigest(shingle.encode()) for shingle in shingles], np.uint64)
    rng = np.random.RandomState(1)
    factors = rng.randint(1, 1 << 62, spec.permutations).astype(np.uint64) | np.uint64(1)
    minima = (hashes[:, None] * factors).min(0)
    return np.array(
        [
            xxhash.xxh3_64_intdigest(band.tobytes(), seed=at)
            for at, band in enumerate(np.split(minima, spec.resolved_bands))
        ],
        np.uint64,
    )


def edges(keys: np.ndarray, ids: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges."""
    order = np.argsort(keys, kind="stable")
    keys, ids = keys[order], ids[order]
    same = np.flatnonzero(keys[1:] == keys[:-1])
    return ids[same], ids[same + 1]


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components."""
    ids, places = np.unique(pairs, return_inverse=True)
    places = places.reshape(pairs.shape)
    graph = coo_array((np.ones(len(pairs)), (places[:, 0], places[:, 1])), shape=(len(ids), len(ids)))
    return ids, connected_components(graph, directed=False)[1]


def representatives(ids: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Representatives."""
    order = np.lexsort((ids, ranks, labels))
    _, first = np.unique(labels[order], return_index=True)
    kept: np.ndarray = ids[order][first][labels]
    return kept
