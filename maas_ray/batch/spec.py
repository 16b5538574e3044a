"""`PredictSpec`: what a user writes to predict the rows of files."""

from typing import Any, Literal

from pydantic import Field, model_validator

from maas_ray import storage
from maas_ray.data.sources import AnySource
from maas_ray.errors import InvalidError
from maas_ray.registry.references import Reference
from maas_ray.spec import Spec


class PredictSpec(Spec):
    """`maas predict SPEC.yaml`: answers of a version to the rows of files."""

    version: Reference = Field(min_length=1)
    """The version: `name@alias`, `name/number`, or `name` for the newest."""
    input: str | AnySource
    """Rows to answer: a file, directory or glob whose names tell the format, or a source as `prepare` takes it. Columns
    are named like the fields of a request; labels are not needed."""
    output: str = Field(min_length=1)
    """Directory for the answers, any fsspec URI. It must be empty, or hold an unfinished run of the same prediction.
    It holds Parquet files of answers and nothing else; `OUTPUT.prediction` beside it holds the manifest and quarantined
    rows. Files in them are never input."""
    keep: tuple[str, ...] | None = None
    """Columns of the input to write beside the answers. None: columns of numbers or short strings; a value whose type
    differs from the first rows is then null, and counted. In a column named here, such a value quarantines its row.
    `path` and `position`, the origin of a row, are always written."""
    parameters: dict[str, Any] = {}
    """Fields of the request for every row, such as `max_tokens`; a row's own value takes precedence."""
    part_rows: int = Field(10_000, ge=1)
    """Approximate rows of an output file, the unit that is repeated after a crash. A compressed file is not cut."""
    max_quarantined: float = Field(0.2, ge=0, le=1)
    """Largest share of rows that may be quarantined; above it, predicting stops."""

    workers: int = Field(1, ge=1)
    """Actors that each hold the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each; also its number of compute threads, at least one."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each."""
    batch_size: int = Field(32, ge=1)
    """Rows computed together. For a model that generates: the largest number in flight."""
    engine: Literal["auto", "openvino", "transformers", "vllm", "onnxruntime", "torch", "torch.compile"] = "auto"
    """The inference engine, as in a deployment."""
    compression: Literal["none", "int8", "int4"] = "none"
    """Bits per weight in OpenVINO, as in a deployment."""

    @model_validator(mode="after")
    def _not_into_itself(self) -> "PredictSpec":
        scheme, _, inner = storage.join(self.output).rpartition("://")
        if scheme not in ("", "file", "memory") and "/" not in inner.strip("/"):
            raise InvalidError(
                "output_is_bucket", f"output: {self.output} is a whole bucket; choose a directory inside it."
            )
        path = storage.join(self.input if isinstance(self.input, str) else self.input.location)
        if f"{storage.join(self.output)}/".startswith(f"{path}/"):
            raise InvalidError(
                "output_in_input",
                f"output: {self.output} is inside the input, which would grow by it; choose another directory.",
            )
        return self
