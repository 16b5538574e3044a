"""The fields under `deduplicate:`."""

from maas_ray.data.dedup.minhash import NearDuplicates
from maas_ray.spec import Spec


class Deduplicate(Spec):
    """Which rows are dropped because they duplicate another row."""

    exact: bool = True
    """Whether one of several rows with the same content is kept. False: all are kept, as separate observations."""
    normalise: bool = True
    """Whether texts that differ only in case, white space or Unicode forms count as the same."""
    near: NearDuplicates | None = None
    """How near-duplicate texts are found. None: they are not searched for."""
