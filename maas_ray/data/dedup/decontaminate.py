"""Decontamination: training rows that hold what held-out rows hold, found by runs of words that both have.

As for GPT-3 (Brown et al. 2020, appendix C): runs of 13 words, in lower case and without punctuation. Evaluating on
what was learned by heart says nothing of what was understood; near-duplicates of whole rows are `near`'s, this is for
a test row quoted inside a longer training row.
"""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from maas_ray.data.dedup.normalise import gram_hashes
from maas_ray.spec import Spec


class Decontaminate(Spec):
    """When a training row is left out for what it shares with held-out rows."""

    ngram: int = Field(13, ge=1, le=1000)
    """Words in a run. Fewer finds more, and more that is mere phrase; GPT-3 had 13."""
    min_overlap: float = Field(0.0, ge=0, le=1)
    """Least share of a training row's runs that held-out rows have, for it to be left out. 0: any one run is enough."""

    def contaminates(self, share: float) -> bool:
        """Whether a row is left out, of whose runs this share is among those of held-out rows."""
        return share > 0 and share >= self.min_overlap


def ngram_hashes(text: str, n: int) -> np.ndarray:
    """The distinct runs of `n` words of a text, uint64, sorted; a text of fewer words is one run."""
    return np.unique(gram_hashes([text], n)[0])


class NgramIndex:
    """The runs of words of all held-out rows: 8 bytes for each distinct one, in every process that looks things up."""

    def __init__(self, hashes: Iterable[np.ndarray]) -> None:
        """From arrays of hashes, in any order and with repetitions."""
        self.hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))

    def __len__(self) -> int:
        return len(self.hashes)

    def contains(self, hashes: np.ndarray) -> float:
        """The share of these runs that the index has; 0 for none."""
        if not len(hashes) or not len(self.hashes):
            return 0.0
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return float(np.count_nonzero(self.hashes[places] == hashes) / len(hashes))
