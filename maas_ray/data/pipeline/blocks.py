"""Ray Data as `prepare` uses it: run a function of one block over many blocks, quietly.

A block is an Arrow table in the cluster's object store, which spills to disk when it is full. A function sees one whole
block at a time and yields tables.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext
from ray.experimental import get_object_locations

from maas_ray.data.pipeline.objects import unpacked
from maas_ray.errors import is_final
from maas_ray.terminal.lines import Progress, progress, say

Blocks = list[Any]
"""References to Arrow tables in the object store, in order."""
Step = Callable[[pa.Table], Any]
"""A function of one block that gives a table or yields several."""
Watch = Callable[[int, int], None]
"""Called with the number of blocks that are ready, and of the rows in them."""

BLOCK_BYTES = 8 << 20
"""The size that a block should have."""
SMALL_BYTES = 1 << 30
"""Up to this size, data is sorted in the existing workers. Ray's default strategy scales further, but starts its own
processes, which takes longer than the sort itself."""
_AT_ONCE = 64
"""Blocks that are processed before their memory is released. The last of them wait for each other."""
_WHOLE: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """Settings of Ray Data within the context.

    Args:
        size: bytes of the whole input.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # One block in gives one block out, because `settle` and `write_shard` need a whole range of keys.
    context.target_max_block_size = None
    # Input of one task of a sort. By default it is a gigabyte, and each worker needs twice that to cut it.
    context.shuffle_input_batch_bytes = 16 * BLOCK_BYTES
    context.raise_original_map_exception = True
    if size <= SMALL_BYTES:
        context.shuffle_strategy = "sort_shuffle_pull_based"
    # Only the console is silenced; Ray's own log file stays complete.
    handlers = logging.getLogger("ray.data").handlers
    consoles = [(handler, handler.level) for handler in handlers if isinstance(handler, logging.StreamHandler)]
    for handler, _ in consoles:
        handler.setLevel(logging.CRITICAL)
    # Blocks are released by collecting garbage, which would look at every object of the imported modules each time.
    gc.collect()
    gc.freeze()
    try:
        with DataContext.current(context), _as_raised():
            yield
    finally:
        gc.unfreeze()
        for handler, level in consoles:
            handler.setLevel(level)


@contextmanager
def _as_raised() -> Iterator[None]:
    """Raise an error of this platform from a worker as the error that it was."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not is_final(cause):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None


def run(
    blocks: Blocks, step: Step | type[Any], watch: Watch | None = None, *, limit: int | None = None, **options: Any
) -> Blocks:
    """Run a step over blocks; the output stays in the cluster, as one block for each block, or cut at `limit` bytes.

    `options` go to Ray Data's `map_batches`, such as the number of actors for a step that is a class.
    """
    if not blocks:
        return []
    context = DataContext.get_current().copy()
    context.target_max_block_size = limit
    with DataContext.current(context):
        return _kept(ray.data.from_arrow_refs(blocks).map_batches(step, **_WHOLE, **options), watch)


def run_over(blocks: Blocks, step: Step | type[Any], watch: Watch | None = None) -> Blocks:
    """Run a step over blocks, one for one, and release them on the way. The list is emptied."""
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
        gc.collect()  # a finished execution refers to itself and to its input
    return done


def run_sorted(blocks: Blocks, key: str, boundaries: list[int], step: Step, watch: Watch | None = None) -> Blocks:
    """Sort by a column into one block for each range between boundaries, then run a step over these blocks.

    The list is emptied. So there are never more than two whole copies of the rows, and the pieces of a sort.
    """
    return run_over(in_sorted_blocks(blocks, key, boundaries), step, watch)


def in_sorted_blocks(blocks: Blocks, key: str, boundaries: list[int]) -> Blocks:
    """Sort by a column into one block for each range between boundaries that holds rows.

    The input blocks are released when they are sorted, and the list is emptied. What fits one block is sorted in the
    driver, which takes less time than to start a task.
    """
    if not blocks:
        return []
    if total_bytes(blocks) <= BLOCK_BYTES:
        ordered = list(map(ray.put, _cut(pa.concat_tables(tables(blocks)), key, boundaries)))
    else:
        dataset = ray.data.from_arrow_refs(blocks).sort(key, boundaries=boundaries)
        ordered = _kept(dataset, None)
        del dataset
    blocks.clear()
    gc.collect()  # see `run_over`
    return ordered


def _cut(table: pa.Table, key: str, boundaries: list[int]) -> Iterator[pa.Table]:
    table = table.sort_by(key)
    ends = np.searchsorted(table[key].to_numpy(), [*boundaries, np.iinfo(np.int64).max]).tolist()
    for start, end in pairwise([0, *ends[:-1], len(table)]):
        if start < end:
            yield table[start:end].combine_chunks()


def _kept(dataset: ray.data.Dataset, watch: Watch | None) -> Blocks:
    """Blocks that hold rows. Empty blocks are dropped: no step was called for them, so their columns may be missing."""
    blocks: Blocks = []
    rows = 0
    for bundle in dataset.iter_internal_ref_bundles():
        blocks += [block.ref for block in bundle.blocks if block.metadata.num_rows]
        rows += bundle.num_rows() or 0
        if watch:
            watch(len(blocks), rows)
    return blocks


def total_bytes(blocks: Blocks) -> int:
    """Size of blocks in the object store, or on disk if they were spilled."""
    return sum(int(location["object_size"]) for location in get_object_locations(blocks).values())


def tables(blocks: Blocks) -> Iterator[pa.Table]:
    """The tables of blocks, one at a time, in order."""
    for block in blocks:
        yield ray.get(block)


def records(blocks: Blocks) -> Iterator[dict[str, Any]]:
    """The rows of small blocks as dicts, in order."""
    for table in tables(blocks):
        yield from table.to_pylist()


def objects(blocks: Blocks) -> Iterator[Any]:
    """The Python objects in blocks of `packed`, in order."""
    for table in tables(blocks):
        yield from unpacked(table)


@contextmanager
def stage(label: str, total: float | None) -> Iterator[Progress]:
    """Print the name of a stage, and its progress while it runs."""
    say(f"  {label}")
    with progress(f"  {label}", total) as bar:
        yield bar
