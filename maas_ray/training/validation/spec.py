"""The parts of a training spec that say when and where the model is validated, and when a run stops early."""

from typing import Literal, Self

from pydantic import Field, model_validator

from maas_ray.errors import InvalidError
from maas_ray.spec import Spec


class ValidationSpec(Spec):
    """When and where the model is measured while it trains."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between validations. None: with every checkpoint."""
    max_rows: int | None = Field(4096, ge=1)
    """Rows of the validation split to measure on before the last step. None: all."""
    max_rows_at_end: int | None = Field(None, ge=1)
    """Rows of the validation split and of the test split to measure on at the last step. None: all."""
    place: Literal["auto", "beside", "workers"] = "auto"
    """beside: on the saved checkpoint, in a process of its own while training goes on. workers: in the workers, which
    stop training meanwhile. auto: beside, if the cluster has room for one more worker and each validation has a
    checkpoint, but not under ZeRO 3, whose model may be too large for one process."""

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        """The last step is compared with the others on their rows, so it must measure them too."""
        if self.max_rows_at_end is not None and (self.max_rows is None or self.max_rows > self.max_rows_at_end):
            rows = "all rows" if self.max_rows is None else f"{self.max_rows:,} rows"
            raise InvalidError(
                "range_reversed",
                f"validation.max_rows_at_end is {self.max_rows_at_end:,}, but earlier validations measure {rows} "
                "(validation.max_rows), with which the last one is compared. Lower max_rows, or raise max_rows_at_end.",
            )
        return self


class EarlyStoppingSpec(Spec):
    """When a run ends because the validation loss no longer falls."""

    patience: int = Field(ge=1)
    """Consecutive validations without a lower validation loss after which the run ends."""
    min_delta: float = Field(0.0, ge=0)
    """How much lower the loss must be to count."""
