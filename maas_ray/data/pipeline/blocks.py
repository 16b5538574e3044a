"""Ray Data as `prepare` uses it: a function of a block run over many blocks, quietly.

A block is an Arrow table in the cluster's object store, which spills to disk what does not fit. A function
sees one whole block at a time and yields tables.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext
from ray.experimental import get_object_locations

from maas_ray.errors import MaasError

Blocks = list[Any]
"""References to Arrow tables in the object store, in order."""
Step = Callable[[pa.Table], Any]
"""A function of a block: gives a table, or yields several."""
Watch = Callable[[int, int], None]
"""Called with the blocks, and the rows in them, that are ready so far."""

BLOCK_BYTES = 32 << 20
"""How large a block should be."""
SMALL_BYTES = 1 << 30
"""Up to here, data is sorted in the workers that are there. Ray's default way scales further, but starts
processes of its own, which takes longer than sorting so little."""
_AT_ONCE = 64
"""Blocks that are worked on before they are let go of: the last of them wait for each other."""
_WHOLE: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """Settings of Ray Data while the block runs.

    Args:
        size: of the whole input, bytes.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # One block in, one block out: a range of keys must stay whole for `settle` and `write_shard`.
    context.target_max_block_size = None
    # What one task of a sort takes in: a gigabyte by default, and as much again while it cuts it, in each worker.
    context.shuffle_input_batch_bytes = 4 * BLOCK_BYTES
    context.raise_original_map_exception = True
    if size <= SMALL_BYTES:
        context.shuffle_strategy = "sort_shuffle_pull_based"
    # The console only: Ray's own log file keeps everything.
    handlers = logging.getLogger("ray.data").handlers
    consoles = [(handler, handler.level) for handler in handlers if isinstance(handler, logging.StreamHandler)]
    for handler, _ in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context), _as_raised():
            yield
    finally:
        for handler, level in consoles:
            handler.setLevel(level)


@contextmanager
def _as_raised() -> Iterator[None]:
    """An error of this platform that was raised in a worker, as it was raised."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, MaasError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None


def run(
    blocks: Blocks, step: Step | type[Any], watch: Watch | None = None, *, limit: int | None = None, **options: Any
) -> Blocks:
    """Run a step over blocks; its output stays in the cluster: one block for one, or cut at `limit` bytes.

    `options` are those of Ray Data's `map_batches`: of a step that is a class, how many actors hold one of it.
    """
    if not blocks:
        return []
    context = DataContext.get_current().copy()
    context.target_max_block_size = limit
    with DataContext.current(context):
        return _kept(ray.data.from_arrow_refs(blocks).map_batches(step, **_WHOLE, **options), watch)


def run_over(blocks: Blocks, step: Step | type[Any], watch: Watch | None = None) -> Blocks:
    """Run a step over blocks, one for one, and let go of them on the way: the list is empty in the end."""
    done: Blocks = []
    rows = 0
    while blocks:
        some = blocks[:_AT_ONCE]
        del blocks[:_AT_ONCE]
        seen = rows

        def counted(count: int, more: int, before: int = len(done), seen: int = seen) -> None:
            nonlocal rows
            rows = seen + more
            if watch:
                watch(before + count, rows)

        done += run(some, step, counted)
        del some
        gc.collect()  # an execution that is over refers to itself, and to what it read
    return done


def run_sorted(blocks: Blocks, key: str, boundaries: list[int], step: Step, watch: Watch | None = None) -> Blocks:
    """Sort by a column into one block for each range between boundaries, then run a step over these.

    The blocks are let go of when they are sorted, and the list is emptied: of the rows there are never more than two
    whole copies, and the pieces of a sort.
    """
    if not blocks:
        return []
    dataset = ray.data.from_arrow_refs(blocks).sort(key, boundaries=boundaries)
    ordered = _kept(dataset, None)
    del dataset
    blocks.clear()
    gc.collect()  # see `run_over`
    return run_over(ordered, step, watch)


def _kept(dataset: ray.data.Dataset, watch: Watch | None) -> Blocks:
    """Blocks that hold rows: an empty one may lack its columns, since no step was called for it."""
    blocks: Blocks = []
    rows = 0
    for bundle in dataset.iter_internal_ref_bundles():
        blocks += [block.ref for block in bundle.blocks if block.metadata.num_rows]
        rows += bundle.num_rows() or 0
        if watch:
            watch(len(blocks), rows)
    return blocks


def total_bytes(blocks: Blocks) -> int:
    """What blocks take in the object store, or on disk where they were spilled."""
    return sum(int(found["object_size"]) for found in get_object_locations(blocks).values())


def tables(blocks: Blocks) -> Iterator[pa.Table]:
    """The blocks themselves, one at a time, in order."""
    for block in blocks:
        yield ray.get(block)


def records(blocks: Blocks) -> Iterator[dict[str, Any]]:
    """The rows of small blocks, in order."""
    for table in tables(blocks):
        yield from table.to_pylist()
