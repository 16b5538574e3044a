"""Stored rows as batches of tensors on the worker's device."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maas_ray.data.dataset import PreparedDataset

Batch = dict[str, Any]
"""Tensors by name, as `Task.collate` gives them."""


class Batches:
    """Collates stored rows and moves them to the device.

    Args:
        dataset: the dataset they are from; its task collates them.
        device: the worker's.
        seed: seeds augmentation, with the step and the rank.
        rank: this worker's.
    """

    def __init__(self, dataset: PreparedDataset, device: Any, seed: int, rank: int) -> None:
        self._dataset, self._task, self._device = dataset, dataset.task, device
        self._seed, self._rank = seed, rank

    def of(self, stored: Mapping[str, np.ndarray]) -> Batch:
        """The batch of some stored rows."""
        return self._moved(self._task.collate(stored))

    def augmented(self, stored: Mapping[str, np.ndarray], generator: Any) -> Batch:
        """The batch of some stored rows for a training pass, augmented by the task."""
        return self._moved(self._task.augment(self._task.collate(stored), generator))

    def generator(self, step: int) -> Any:
        """The random generator for augmentation in a step.

        It depends on seed, step and rank alone, so a resumed run and a repeated step draw the same numbers.
        """
        import torch

        seed = int(np.random.default_rng([self._seed, step, self._rank]).integers(2**62))
        return torch.Generator().manual_seed(seed)

    def any_row(self) -> Batch:
        """A batch of one row, for a pass that needs a row and must not count it."""
        first = next(self._dataset.read([self._dataset.row_group("train", 0)]))
        return self.of({name: values[:1] for name, values in first.items()})

    def _moved(self, batch: Batch) -> Batch:
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
