"""What a user writes under `deduplicate:`. How it is done stands in `near`, `verdicts` and `fates`."""

from maas_ray.data.dedup.minhash import NearDuplicates
from maas_ray.spec import Spec


class Deduplicate(Spec):
    """Which rows are left out since they are like another."""

    exact: bool = True
    """Whether of rows with the same content one is kept. False where equal rows are observations of their own."""
    normalise: bool = True
    """Whether texts are the same that differ in case, white space or Unicode's forms alone."""
    near: NearDuplicates | None = None
    """How texts that are nearly the same are found. None: they are not looked for."""
