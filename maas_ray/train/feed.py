"""The feed: which rows a worker trains on, in which order; a pure function of what it is given.

An epoch is one stream of rows: the row groups in a seeded order, the rows of each in a seeded order. The
stream is cut into as many equal segments as there are workers; a worker's feed is its segments, epoch
after epoch. So a position is one number, the optimizer steps taken; the same position gives the same
rows on any attempt, and finding it costs the same wherever it lies. What is left over when an epoch is
cut, fewer rows than one step takes, differs from epoch to epoch, and is counted.

Ray Data reads the row groups (each only by the workers whose segment lies in it) and keeps a few batches
ahead. Every row carries its `index`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from maas_ray.data.dataset import PreparedDataset, RowGroup
from maas_ray.errors import DataError

_TASK_BYTES = 4 << 20


@dataclass(frozen=True)
class Slice:
    """Rows [low, high) of a row group in its shuffled order of that epoch."""

    epoch: int
    group: RowGroup
    low: int
    high: int


@dataclass(frozen=True)
class Plan:
    """How a training split is dealt to workers.

    Args:
        groups: the split's row groups, in index order.
        batch_size: rows in one optimizer step, over all workers; a multiple of `workers`.
        workers: number of workers.
        epochs: passes over the split.
        seed: seeds the order.
        max_steps: limit of optimizer steps; None: no limit.
    """

    groups: tuple[RowGroup, ...]
    batch_size: int
    workers: int
    epochs: int
    seed: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            raise DataError(
                f"the training split has {self.rows} rows, fewer than one batch of {self.batch_size}; "
                "lower batch_size or prepare more data."
            )

    @property
    def rows(self) -> int:
        """Rows in the split."""
        return sum(group.rows for group in self.groups)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        return self.rows // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps

    @property
    def left_over(self) -> int:
        """Rows of each epoch that are not trained on in it."""
        return self.rows - self.steps_per_epoch * self.batch_size

    def slices(self, rank: int, start_step: int = 0) -> Iterator[Slice]:
        """What one worker reads from optimizer step `start_step` (counted from 0) to the end, in order."""
        share = self.batch_size // self.workers
        segment = share * self.steps_per_epoch
        for epoch in range(start_step // self.steps_per_epoch, self.epochs):
            first = max(0, start_step - epoch * self.steps_per_epoch)
            last = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
            low, high = rank * segment + first * share, rank * segment + last * share
            place = 0
            for number in self._order(epoch):
                group = self.groups[number]
                cut_low, cut_high = max(low - place, 0), min(high - place, group.rows)
                if cut_low < cut_high:
                    yield Slice(epoch, group, cut_low, cut_high)
                place += group.rows

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))

    def rows_of(self, piece: Slice) -> np.ndarray:
        """Places in the row group, int64, that a slice stands for."""
        order = np.random.default_rng([self.seed, piece.epoch, piece.group.start]).permutation(piece.group.rows)
        return order[piece.low : piece.high]


def batches(
    dataset: PreparedDataset, plan: Plan, *, rank: int, start_step: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """One worker's batches from a step on: stored columns [batch_size, *shape], and `index`.

    Runs as Ray Data tasks that need no CPU of their own reserved, so that a cluster whose CPUs are all
    taken by training workers still feeds them; at most two at a time for each worker.
    """
    import ray.data
    from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=1 << 28)

    bundles = _bundled(plan.slices(rank, start_step), _row_bytes(dataset))

    def read(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for piece in bundles[int(batch["id"][0])]:
            (rows,) = dataset.read([piece.group])
            chosen = plan.rows_of(piece)
            yield {name: values[chosen] for name, values in rows.items()}

    source = ray.data.range(len(bundles), override_num_blocks=len(bundles))
    stream = source.map_batches(read, batch_size=None, num_cpus=0, compute=TaskPoolStrategy(size=2))
    yield from stream.iter_batches(batch_size=batch_size, batch_format="numpy", drop_last=True, prefetch_batches=4)


def _row_bytes(dataset: PreparedDataset) -> int:
    return sum(np.dtype(c.dtype).itemsize * int(np.prod(c.shape)) for c in dataset.columns.values())


def _bundled(slices: Iterable[Slice], row_bytes: int) -> list[list[Slice]]:
    """Slices in order, several to a read task, so that a task reads a few megabytes."""
    bundles: list[list[Slice]] = []
    filled = _TASK_BYTES
    for piece in slices:
        if filled >= _TASK_BYTES:
            bundles.append([])
            filled = 0
        bundles[-1].append(piece)
        filled += (piece.high - piece.low) * row_bytes
    return bundles
