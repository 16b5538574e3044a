"""Collective operations of the training workers: all ranks call each of them together."""

from typing import Any


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Return when all ranks have called it."""
    import torch

    torch.distributed.barrier()
