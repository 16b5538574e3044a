"""What a user writes to have a version answer the rows of files."""

from typing import Any, Literal

from pydantic import Field, model_validator

from maas_ray import storage
from maas_ray.data.sources import AnySource
from maas_ray.spec import Spec


class PredictSpec(Spec):
    """What `maas predict` reads."""

    version: str = Field(min_length=1)
    """The version: `name@alias`, `name/number`, or `name` for the newest."""
    input: str | AnySource
    """Rows to answer: a file, directory or glob whose names say the format, or a source as `prepare` takes it. Columns
    are named as the fields of a request; labels need not be there."""
    output: str = Field(min_length=1)
    """Directory for the answers, any fsspec URI; one that is empty, or holds this very prediction, begun before.
    What lies there is never input."""
    keep: tuple[str, ...] | None = None
    """Columns of the input to write beside the answers. None: those that hold numbers or short strings; a value
    of another type than the first rows have is then null, and counted, while in a column named here it sets the row
    aside. `path` and `position`, which say where a row stands in the input, always are."""
    parameters: dict[str, Any] = {}
    """Fields of the task's request that are the same for every row, such as `max_tokens`; a row's own go before."""
    part_rows: int = Field(10_000, ge=1)
    """About how many rows an output file holds: what is repeated after a crash. A compressed file is not cut."""
    max_quarantined: float = Field(0.2, ge=0, le=1)
    """Share of rows that may be impossible to answer; above it, predicting stops."""

    workers: int = Field(1, ge=1)
    """Actors that each hold the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each; also its number of compute threads, at least one."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each."""
    batch_size: int = Field(32, ge=1)
    """Rows computed together; of a model that generates, most that are in flight."""
    engine: Literal["auto", "openvino", "transformers", "vllm", "onnxruntime", "torch", "torch.compile"] = "auto"
    """What computes, as in a deployment."""
    compression: Literal["none", "int8", "int4"] = "none"
    """Bits that OpenVINO keeps of a weight, as in a deployment."""

    @model_validator(mode="after")
    def _not_into_itself(self) -> "PredictSpec":
        path = storage.join(self.input if isinstance(self.input, str) else self.input.location)
        if f"{storage.join(self.output)}/".startswith(f"{path}/"):
            raise ValueError(
                f"output: {self.output} lies inside the input, which would grow by it; name another directory."
            )
        return self
