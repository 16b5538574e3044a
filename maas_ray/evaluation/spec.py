"""`EvaluateSpec`: what a user writes to measure a registered version."""

from pydantic import Field

from maas_ray.registry.references import Reference
from maas_ray.spec import Spec


class EvaluateSpec(Spec):
    """`maas evaluate SPEC.yaml`: measure a registered version."""

    version: Reference
    """The version: `name@alias`, `name/number`, or `name` for the newest."""
    dataset: str | None = None
    """Prepared dataset. None: the one the version was trained on."""
    split: str = "test"
    """Split to measure on: `train`, `validation` or `test`."""
    slices: tuple[str, ...] = ()
    """Columns whose values are each measured separately; the dataset must be prepared to `keep` them."""
    against: Reference | None = None
    """Another version to compare with on the same rows. None: no comparison."""
    resamples: int = Field(1000, ge=0)
    """Bootstrap draws for an interval; fewer if there are many rows, and at most 200 for a slice. 0: no intervals."""
    resample_seconds: float = Field(60.0, ge=0)
    """Time limit for the draws of a version, and for those of a column's slices. Fewer than 20 draws: no intervals."""
    level: float = Field(0.95, gt=0, lt=1)
    """Level of the intervals."""
    seed: int = Field(0, ge=0)
    """Seeds the draws."""
    batch_size: int = Field(16, ge=1)
    """Rows in one forward pass."""
    workers: int = Field(1, ge=1)
    """Actors that each hold the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each; also its number of compute threads, at least one."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each."""
