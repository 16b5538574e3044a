"""Proof that the driver and all workers see one storage, before the first step.

Otherwise each machine would write its part of a checkpoint to a disk of its own, and no checkpoint would ever be whole.
"""

import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from maas_ray import storage
from maas_ray.errors import MaasError, StorageError, TrainingError
from maas_ray.training.collectives import from_all_ranks, from_first_rank

_DRIVER = "driver"


@contextmanager
def probe(home: str, retry_seconds: float, say: Callable[[str], None]) -> Iterator[str]:
    """URI of a directory that holds a file of the driver while the block runs; workers give it to `prove`.

    Args:
        home: URI of the run's directory.
        retry_seconds: how long a failing write is retried.
        say: called with a line for each retry.
    """
    uri = storage.join(home, f"probe-{uuid.uuid4().hex[:12]}")
    content = socket.gethostname().encode()
    storage.retry_with_backoff(partial(storage.write_bytes, storage.join(uri, _DRIVER), content), retry_seconds, say)
    try:
        yield uri
    finally:
        with suppress(MaasError):  # the run has its own result; a small file may stay
            storage.delete(uri)


def prove(uri: str, rank: int) -> None:
    """Return if every rank sees the driver's file, and rank 0 the files of all ranks. All ranks call it together.

    Storage that fails proves nothing, and is retried where its content is needed.

    Args:
        uri: the directory from `probe`.
        rank: this worker's.

    Raises:
        TrainingError: a machine has another storage; raised on every rank alike.
    """
    name = f"{from_first_rank(uuid.uuid4().hex[:8])}-{rank}"
    found: list[_Found | None] = from_all_ranks(_found(uri, name))
    names = from_first_rank(_names(uri) if rank == 0 else None)
    if names is None or None in found:
        return
    apart = sorted({one.host for one in found if one and (not one.sees_driver or one.name not in names)})
    if apart:
        raise TrainingError(
            f"{uri.rpartition('/')[0]} is not the same storage on every machine: not on {', '.join(apart)}. Set "
            "MAAS_STORAGE to a directory that all machines mount, or to an object store.",
            code="storage_not_shared",
        )


class _Found(NamedTuple):
    """A rank's machine, the file that it wrote, and whether it sees the driver's."""

    host: str
    name: str
    sees_driver: bool


def _found(uri: str, name: str) -> _Found | None:
    try:
        sees = storage.exists(storage.join(uri, _DRIVER))
        storage.write_bytes(storage.join(uri, name), b"")
    except StorageError:
        return None
    return _Found(socket.gethostname(), name, sees)


def _names(uri: str) -> list[str] | None:
    try:
        return storage.list_directory(uri)
    except StorageError:
        return None
