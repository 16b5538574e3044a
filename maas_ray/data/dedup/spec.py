"""The fields under `deduplicate:`."""

from maas_ray.data.dedup.minhash import NearDuplicates
from maas_ray.spec import Spec


class Deduplicate(Spec):
    """Which rows are dropped because they duplicate another row."""

    exact: bool | None = None
    """Keep only one of several rows with the same content. False: keep all of them, as separate observations. None:
    false for tables and series, where equal rows are observations, and true for text, images and sound."""
    normalise: bool = True
    """Treat texts that differ only in case, white space or Unicode forms as the same."""
    near: NearDuplicates | None = None
    """How near-duplicate texts are found. None: they are not searched for."""
