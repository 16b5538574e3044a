"""Where a run goes on: its newest whole checkpoint, on every machine, in a form that this many workers can load.

The workers verify it together, each a share of its bytes; the first of each machine fetches it and, where it was made
by another number of workers, converts it. Every function here is collective: all ranks call it together.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.errors import CorruptError
from maas_ray.storage import FileEntry
from maas_ray.training import checkpoint
from maas_ray.training.checkpoint import Position


@dataclass(frozen=True)
class Saved:
    """A checkpoint on this machine.

    Args:
        position: where the run stood.
        source: the checkpoint's own files.
        universal: the directory that holds its universal form. None: it can be loaded as it is.
    """

    position: Position
    source: Path
    universal: Path | None

    def load(self, engine: Any, rank: int, seed: int) -> None:
        """Put the engine, and this rank's random state, where the run stood."""
        directory, tag = (self.universal, checkpoint.UNIVERSAL_TAG) if self.universal else (self.source, checkpoint.TAG)
        checkpoint.load(engine, directory, tag, self.source, rank, [seed, self.position.step, rank])


@contextmanager
def newest(home: str, rank: int, local_rank: int, workers: int, say: Callable[[str], None]) -> Iterator[Saved | None]:
    """The newest whole checkpoint of a run while the block lasts, or None.

    Args:
        home: URI of the run's directory.
        rank: this worker's.
        local_rank: this worker's on its machine.
        workers: how many there are.
        say: told of checkpoints that are not whole.
    """
    found = _newest(home, rank, workers, say)
    if found is None:
        yield None
        return
    uri, position = found
    directory = Path(tempfile.gettempdir()) / f"maas-resume-{agreed(uuid.uuid4().hex[:8])}"
    if local_rank == 0:
        source = checkpoint.fetch(uri, directory / "copy")
        if checkpoint.needs_conversion(source, position, workers):
            checkpoint.universal(source, directory)
    barrier()
    universal = directory if (directory / checkpoint.UNIVERSAL_TAG).is_dir() else None
    yield Saved(position, storage.local_path(uri) or directory / "copy", universal)
    barrier()
    if local_rank == 0:
        checkpoint.remove(directory)


def _newest(home: str, rank: int, workers: int, say: Callable[[str], None]) -> tuple[str, Position] | None:
    """As `checkpoint.newest`."""
    import torch

    for uri in agreed(checkpoint.saved(home) if rank == 0 else None):
        position, entries, problem = agreed(_inspected(uri) if rank == 0 else None)
        if not problem:
            # The largest first, so that shares are about equal.
            share = sorted(entries, key=lambda entry: entry.size, reverse=True)[rank::workers]
            problems: list[str] = [""] * workers
            torch.distributed.all_gather_object(problems, _problem(uri, share))
            problem = next(filter(None, problems), "")
        if not problem:
            return uri, position
        if rank == 0:
            say(checkpoint.passed_over(problem))
    return None


def _inspected(uri: str) -> tuple[Position | None, list[FileEntry], str]:
    try:
        return *checkpoint.inspect(uri), ""
    except CorruptError as error:
        return None, [], str(error)


def _problem(uri: str, entries: list[FileEntry]) -> str:
    try:
        storage.verify(uri, entries)
    except CorruptError as error:
        return str(error)
    return ""


def agreed(value: Any) -> Any:
    """What rank 0 gave."""
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Return when all ranks have come here."""
    import torch

    torch.distributed.barrier()
