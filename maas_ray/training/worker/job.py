"""The job of the training workers: everything they are sent when they start."""

import os
from dataclasses import dataclass
from typing import Any

from maas_ray.data.dataset import PreparedDataset
from maas_ray.training.checkpoints.position import RowOrder
from maas_ray.training.plan import Plan
from maas_ray.training.spec import TrainSpec


@dataclass(frozen=True)
class Job:
    """Everything a worker is sent."""

    spec: TrainSpec
    dataset: PreparedDataset
    plan: Plan
    home: str
    """URI of the run's directory, which holds its checkpoints."""
    events: Any
    """Handle of the `EventBuffer` actor."""
    may_leave: bool
    """True if the workers may be asked to save and leave, because machines come and go."""
    validator: Any
    """Handle of the `Validator` actor, which measures checkpoints beside the training. None: the workers measure."""
    identity: str = ""
    """The run's identity, which its checkpoints carry."""
    probe: str = ""
    """URI by which the workers prove that they share the driver's storage, see `checkpoints/shared.py`."""

    @property
    def order(self) -> RowOrder:
        """The order of rows, which checkpoints carry."""
        plan = self.plan
        return RowOrder(
            dataset=self.dataset.fingerprint,
            batch_size=plan.batch_size,
            lanes=plan.lanes,
            epochs=plan.epochs,
            seed=plan.seed,
        )


@dataclass(frozen=True)
class Rank:
    """A worker among the others.

    Args:
        rank: this worker's number.
        local_rank: its number on its machine.
        world: number of workers.
        device: the `torch.device` it computes on.
    """

    rank: int
    local_rank: int
    world: int
    device: Any

    @classmethod
    def current(cls) -> "Rank":
        """The rank of this process, which must be a Ray Train worker."""
        import ray.train
        import torch

        context = ray.train.get_context()
        device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        return cls(context.get_world_rank(), context.get_local_rank(), context.get_world_size(), device)

    @property
    def on_cpu(self) -> bool:
        return bool(self.device.type == "cpu")


def worker_environment(*, on_cpu: bool, threads: int) -> dict[str, str]:
    """Environment variables of a training worker."""
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore")}
    if on_cpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        # Each step allocates and frees the same tensors as the previous one. By default glibc returns large ones to
        # the system each time, and the kernel clears every page again: up to a third of a small step.
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    return environment
