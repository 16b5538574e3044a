"""Batch geometry: how the rows of an optimizer step are divided into workers and forward passes."""

from typing import NamedTuple, TypeVar

from maas_ray.errors import InvalidError
from maas_ray.training.deepspeed.document import AUTO
from maas_ray.training.hyperparameters import Hyperparameters

HyperparametersT = TypeVar("HyperparametersT", bound=Hyperparameters)

BATCH_FIELDS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
MAX_ROWS = 8
"""Rows of a pass by default."""
MAX_TOKENS = 8192
"""Tokens of a pass by default, if rows are text."""


class BatchGeometry(NamedTuple):
    """How a step's rows are divided.

    Args:
        batch: rows in an optimizer step, over all workers.
        micro_batch: rows in one forward pass of one worker.
        passes: forward passes of one worker in a step, over which it accumulates gradients.
    """

    batch: int
    micro_batch: int
    passes: int


def batch_geometry(spec: Hyperparameters, workers: int) -> BatchGeometry:
    """The geometry for a number of workers.

    A number in the DeepSpeed document takes precedence over a default of the spec; the rest follows. The rows of a
    step are the same for any number of workers: fewer workers make more passes. If rows do not divide evenly, some
    passes have fewer rows and weigh less.
    """
    written = _written(spec)
    micro = written["train_micro_batch_size_per_gpu"] or spec.micro_batch_size
    accumulation = written["gradient_accumulation_steps"]
    batch = written["train_batch_size"]
    if batch is None and micro and accumulation and "batch_size" not in spec.model_fields_set:
        batch = micro * accumulation * spec.max_workers
    batch = batch or spec.batch_size
    if micro is None:
        share = -(-batch // spec.max_workers)
        micro = -(-share // accumulation) if accumulation else _default_micro_batch(share, MAX_ROWS)
    return BatchGeometry(batch, micro, max(1, -(-batch // (workers * micro))))


def with_micro_batch(spec: HyperparametersT, tokens: int) -> HyperparametersT:
    """A spec whose default `micro_batch_size` is filled in by the tokens of a row.

    Args:
        spec: the run's.
        tokens: most tokens that a row holds.
    """
    if spec.micro_batch_size or any(_written(spec)[name] for name in BATCH_FIELDS[1:]):
        return spec
    share = -(-batch_geometry(spec, spec.max_workers).batch // spec.max_workers)
    return spec.model_copy(update={"micro_batch_size": _default_micro_batch(share, max(1, MAX_TOKENS // tokens))})


def check_batch(spec: Hyperparameters) -> None:
    """Check that the numbers written for a step's rows agree, at the largest number of workers.

    Raises:
        InvalidError: they do not.
    """
    workers = spec.max_workers
    geometry = batch_geometry(spec, workers)
    batch, micro = geometry.batch, geometry.micro_batch
    if batch < workers:
        raise InvalidError(
            "batch_too_small", f"batch_size: {batch} rows a step are too few for {workers} workers; each needs one."
        )
    passes = _written(spec)["gradient_accumulation_steps"]
    if passes and (micro * passes * workers) != batch:
        raise InvalidError(
            "batch_uneven",
            f"{batch} rows a step do not divide evenly: batch_size (train_batch_size) is {batch}, but {workers} "
            f"workers × {micro} rows a pass (micro_batch_size) × {passes} passes (gradient_accumulation_steps) make "
            f"{micro * passes * workers}. Remove one of them.",
        )


def _written(spec: Hyperparameters) -> dict[str, int | None]:
    """The numbers that the DeepSpeed document gives for a step's rows."""
    return {name: None if (value := spec.deepspeed.get(name)) == AUTO else value for name in BATCH_FIELDS}


def _default_micro_batch(share: int, limit: int) -> int:
    """The largest divisor of a worker's share up to a limit."""
    return next(size for size in range(min(limit, share), 0, -1) if share % size == 0)
