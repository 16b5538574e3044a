"""Functions that the training workers call together: each waits until all ranks have called it.

Torch's collectives give up after half an hour, so that a broken network does not hang a run. One rank may work longer
while the others wait: it fetches or converts a checkpoint, computes metrics, or retries a write. So the ranks first
meet by counting in the store that they found each other with. It has no deadline, and Ray Train, which watches each
process and machine, ends the wait if a rank dies.
"""

import itertools
import pickle
import time
from collections import deque
from typing import Any, TypeVar

T = TypeVar("T")

ROUND_BYTES = 64 << 20
"""Pickled bytes that all ranks together send to the first rank at a time."""
_LONGEST_PAUSE = 0.25
_meetings = itertools.count()


def barrier() -> None:
    """Return when all ranks have called it, however long that takes."""
    import torch

    world: Any = torch.distributed.group.WORLD
    store = world.get_group_store()
    number, pause = next(_meetings), 0.001
    store.add(_key(number), 1)
    while store.add(_key(number), 0) < torch.distributed.get_world_size():
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    if number and torch.distributed.get_rank() == 0:
        store.delete_key(_key(number - 1))  # all have left it, since they are here


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, on every rank. Rank 0 may take as long as it needs to have it."""
    import torch

    barrier()
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def from_all_ranks(value: Any) -> list[Any]:
    """The values of all ranks by rank, on every rank. Each may take as long as it needs to have its own."""
    import torch

    barrier()
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_buffers(module: Any) -> None:
    """Give all ranks rank 0's buffers, such as the statistics of batch normalisation.

    Each rank changes them by rows of its own. Rank 0's are saved, so they are measured and trained on as well.
    """
    import torch

    for buffer in filter(torch.numel, module.buffers()):
        held = buffer.detach().contiguous().reshape(-1).view(torch.uint8)  # a collective may not know the dtype
        torch.distributed.broadcast(held, 0)
        buffer.copy_(held.view(buffer.dtype).view(buffer.shape))


def to_first_rank(parts: deque[T]) -> list[T]:
    """The parts of all ranks on rank 0, ordered by rank; on other ranks an empty list.

    NCCL carries them through the devices, and rank 0 gets as much from each rank as the longest message has. So they
    are sent in rounds: a device holds `ROUND_BYTES` of them at a time, and the hosts hold the rest.

    Args:
        parts: this rank's, which are taken out one by one, each small beside `ROUND_BYTES`.
    """
    import torch

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    arrived: list[list[T]] = [[] for _ in range(world)]
    more = True
    while more:
        barrier()
        message = _message(parts, ROUND_BYTES // world), bool(parts)
        messages: list[Any] | None = None if rank else [None] * world
        torch.distributed.gather_object(message, messages)
        for held, (pickled, _) in zip(arrived, messages or (), strict=False):
            held.extend(map(pickle.loads, pickled))
        more = from_first_rank(any(left for _, left in messages or ()))
    return [part for held in arrived for part in held]


def _message(parts: deque[T], size: int) -> list[bytes]:
    """The next parts, pickled, until they have a size in bytes."""
    pickled: list[bytes] = []
    while parts and size > 0:
        pickled.append(pickle.dumps(parts.popleft()))
        size -= len(pickled[-1])
    return pickled


def _key(number: int) -> str:
    return f"maas/meeting/{number}"
