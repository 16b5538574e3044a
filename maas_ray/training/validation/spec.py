"""The parts of a training spec that say when and where the model is validated, and when a run stops early."""

from typing import Literal

from pydantic import Field

from maas_ray.spec import Spec


class ValidationSpec(Spec):
    """When and where the model is measured while it trains."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between validations. None: with every checkpoint."""
    max_rows: int | None = Field(4096, ge=1)
    """Rows of the validation split to measure on; the last step uses all. None: always all."""
    place: Literal["auto", "beside", "workers"] = "auto"
    """beside: on the saved checkpoint, in a process of its own while training goes on. workers: in the workers, which
    stop training meanwhile. auto: beside, if the cluster has room for one more worker and each validation has a
    checkpoint, but not under ZeRO 3, whose model may be too large for one process."""


class EarlyStoppingSpec(Spec):
    """When a run ends because the validation loss no longer falls."""

    patience: int = Field(ge=1)
    """Consecutive validations without a lower validation loss after which the run ends."""
    min_delta: float = Field(0.0, ge=0)
    """How much lower the loss must be to count."""
