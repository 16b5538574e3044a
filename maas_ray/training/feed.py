"""The feed: a worker's rows of each step, which Ray Data reads ahead of the training.

The plan decides which rows (see `plan`). Its reads become Ray Data tasks of a few megabytes each, and their rows one
batch for each optimizer step. Every row carries its `index` and its `epoch`.
"""

from collections.abc import Iterator

import numpy as np

from maas_ray.data.dataset import PreparedDataset
from maas_ray.ray_private.data import range_datasource
from maas_ray.training.plan import Plan
from maas_ray.training.worker.ahead import Ahead

EPOCH = "epoch"
_SPLIT = "train"
_READ_BYTES = 4 << 20
_AHEAD_BYTES = 1 << 28


def batches(
    dataset: PreparedDataset, plan: Plan, *, rank: int, workers: int, start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """One worker's rows of each step from `start_step` on: stored columns [n, *shape], `index` and `epoch` int64 [n].

    If a worker has no rows in the short last step, there is no batch for it. The first read is made here, because Ray
    Data takes most of a second to start, which it does meanwhile.
    """
    reads = plan.reads(rank, workers, start_step, max(1, _READ_BYTES // _row_bytes(dataset)))
    if not reads:
        return
    with Ahead(_blocks(dataset, plan, rank, workers, reads[1:])) as blocks:
        held = rows_of(dataset, plan, rank, workers, *reads[0])
        for step in range(start_step, plan.total_steps):
            low, high = plan.share(step, rank, workers)
            while len(held["index"]) < high - low:
                block = next(blocks)
                held = {name: np.concatenate([held[name], block[name]]) for name in block}
            if high > low:
                yield {name: values[: high - low] for name, values in held.items()}
                held = {name: values[high - low :] for name, values in held.items()}


def _blocks(
    dataset: PreparedDataset, plan: Plan, rank: int, workers: int, reads: list[tuple[int, int]]
) -> Iterator[dict[str, np.ndarray]]:
    """A worker's rows of each read, by Ray Data tasks; on its own node, unless that has no room.

    The tasks reserve no CPU, so that a cluster whose CPUs are all reserved by training workers still feeds them. At
    most two tasks run at a time for each worker.
    """
    if not reads:
        return
    import ray.data
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    node = ray.get_runtime_context().get_node_id()
    context.scheduling_strategy = NodeAffinitySchedulingStrategy(node, soft=True)
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=_AHEAD_BYTES)

    def read(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        first, last = reads[int(batch["id"][0])]
        return rows_of(dataset, plan, rank, workers, first, last)

    # Each task of `ray.data.range` would reserve a CPU, and wait for ever if workers hold them all.
    numbers = range_datasource(len(reads))
    pool = TaskPoolStrategy(size=2)
    source = ray.data.read_datasource(numbers, num_cpus=0, compute=pool, override_num_blocks=len(reads))
    stream = source.map_batches(read, batch_size=None, num_cpus=0, compute=pool)
    # `batches` cuts whole blocks: slicing an array is free, while a batch of Ray Data costs CPU in the step.
    yield from stream.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)


def rows_of(
    dataset: PreparedDataset, plan: Plan, rank: int, workers: int, first: int, last: int
) -> dict[str, np.ndarray]:
    """A worker's rows of the steps [first, last), one of the plan's reads, ordered by step and then by lane."""
    lanes = []
    for lane in plan.lanes_of(rank, workers, first, last):
        pieces = []
        for piece in lane.slices:
            (stored,) = dataset.read([dataset.row_group(_SPLIT, piece.group)])
            chosen = plan.rows_of(piece)
            rows = {name: values[chosen] for name, values in stored.items()}
            pieces.append(rows | {EPOCH: np.full(len(chosen), piece.epoch, np.int64)})
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        lanes.append(
            {
                name: values.reshape(-1, lane.width, *values.shape[1:])[:, lane.low : lane.high]
                for name, values in columns.items()
            }
        )
    together = {name: np.concatenate([lane[name] for lane in lanes], axis=1) for name in lanes[0]}
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in together.items()}


def _row_bytes(dataset: PreparedDataset) -> int:
    return sum(np.dtype(c.dtype).itemsize * int(np.prod(c.shape)) for c in dataset.columns.values())
