"""The part of a training spec that says when checkpoints are saved and which are kept."""

from typing import Literal

from pydantic import Field

from maas_ray.spec import Spec


class CheckpointSpec(Spec):
    """When the state of a run is saved. At most one checkpoint is on its way to storage at a time."""

    every_steps: int = Field(200, ge=1)
    """Optimizer steps between checkpoints; the last step always has one. Each checkpoint waits until the previous one
    is in storage, so at most twice as many steps are unsaved, however slow storage is."""
    keep: int = Field(2, ge=1)
    """How many of the newest whole checkpoints to keep. The one with the lowest validation loss is kept too, and, as
    long as the workers run, the one that they resumed from."""
    retry_seconds: float = Field(300.0, ge=0)
    """How long a failed write is retried, seconds. After that the workers are restarted, up to `max_failures` times.
    If it was a write of the bundle, the run ends; it can be started again."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint becomes the version. best: the one with the lowest validation loss on the same rows; each
    validation then saves a checkpoint."""
