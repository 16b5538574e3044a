"""Stored rows as batches of tensors on the worker's device."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maas_ray.data.dataset import PreparedDataset
from maas_ray.training.plan import Plan

Batch = dict[str, Any]
"""Tensors by name, as `Task.collate` gives them."""
Rows = Mapping[str, np.ndarray]
"""Stored columns, arrays [n, *shape]."""


class Pass(NamedTuple):
    """A training pass that is prepared.

    Args:
        rows: all rows of the worker in this step. Empty: it has none.
        batch: those of this pass, augmented.
    """

    rows: Rows
    batch: Batch


class Batches:
    """Collates stored rows and moves them to the device. Two threads may use it; one at a time calls the task.

    Args:
        dataset: the dataset they are from; its task collates them.
        device: the worker's.
        seed: seeds augmentation, with the step and the rank.
        rank: this worker's.
    """

    def __init__(self, dataset: PreparedDataset, device: Any, seed: int, rank: int) -> None:
        self._dataset, self._task, self._device = dataset, dataset.task, device
        self._seed, self._rank = seed, rank
        self._turn = threading.Lock()
        self._streams: tuple[Any, Any] | None = None
        if device.type == "cuda":
            import torch

            copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._streams = copying, torch.cuda.current_stream(device)

    def of(self, stored: Rows) -> Batch:
        """The batch of some stored rows."""
        with self._turn:
            batch = self._task.collate(stored)
        return self._moved(batch)

    def of_step(self, step: int, rows: Rows, micro_batch: int) -> Iterator[Batch]:
        """The batches of a worker's rows of a step, augmented by the task.

        They depend on the rows, the seed, the step and the rank alone, so a resumed run and a repeated step see the
        same.
        """
        import torch

        seed = int(np.random.default_rng([self._seed, step, self._rank]).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(next(iter(rows.values()), ())), micro_batch):
            part = {name: values[start : start + micro_batch] for name, values in rows.items()}
            with self._turn:
                batch = self._task.augment(self._task.collate(part), generator)
            yield self._moved(batch)

    def passes(self, feed: Iterator[Rows], plan: Plan, *, first: int, world: int, micro_batch: int) -> Iterator[Pass]:
        """The worker's passes of every step; one without rows for a step in which it has none.

        Args:
            feed: the worker's rows of each step in which it has rows.
            plan: the run's.
            first: the first step, counted from 1.
            world: number of workers.
            micro_batch: rows of a pass.
        """
        for step in range(first, plan.total_steps + 1):
            low, high = plan.share(step - 1, self._rank, world)
            if high == low:
                yield Pass({}, {})
                continue
            rows = next(feed)
            for batch in self.of_step(step, rows, micro_batch):
                yield Pass(rows, batch)

    def any_row(self) -> Batch:
        """A batch of one row, for a pass that needs a row and must not count it."""
        first = next(self._dataset.read([self._dataset.row_group("train", 0)]))
        return self.of({name: values[:1] for name, values in first.items()})

    def _moved(self, batch: Batch) -> Batch:
        """A batch on the device; copies to a GPU are done when this returns, beside what the GPU computes."""
        if self._streams is None:
            return {name: tensor.to(self._device) for name, tensor in batch.items()}
        import torch

        copying, computing = self._streams
        with torch.cuda.stream(copying):
            moved = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in batch.items()}
        copying.synchronize()
        for tensor in moved.values():
            tensor.record_stream(computing)  # else its memory could be reused before the computation is done
        return moved
