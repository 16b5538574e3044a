"""Resuming a run: its newest whole checkpoint, on every machine, in a form that this number of workers can load.

The workers verify the checkpoint together, each a share of its bytes. The first worker of each machine fetches it and
converts it if it was saved by another number of workers. Every function here is collective: all ranks call it together.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.errors import CorruptError
from maas_ray.storage import FileEntry
from maas_ray.training.checkpoints import catalog, layout, loading
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.collectives import barrier, from_all_ranks, from_first_rank

_COPIES = "maas-resume-"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on this machine.

    Args:
        uri: where it lies.
        position: the run's position in it.
        source: the checkpoint's own files.
        universal: the directory that holds its universal form. None: it can be loaded as it is.
    """

    uri: str
    position: Position
    source: Path
    universal: Path | None

    def load(self, engine: Any, rank: int, seed: int) -> None:
        """Restore the engine and this rank's random state."""
        directory, tag = (self.universal, layout.UNIVERSAL_TAG) if self.universal else (self.source, layout.TAG)
        loading.load(engine, directory, tag, self.source, rank, [seed, self.position.step, rank])


@contextmanager
def newest(
    home: str, rank: int, local_rank: int, workers: int, say: Callable[[str], None], damaged: list[str]
) -> Iterator[Saved | None]:
    """The newest whole checkpoint of a run while the block lasts, or None.

    Args:
        home: URI of the run's directory.
        rank: this worker's.
        local_rank: this worker's on its machine.
        workers: number of workers.
        say: called with a line for each checkpoint that is not whole.
        damaged: gets the URI of each checkpoint that is not whole.
    """
    checkpoint = _newest(home, rank, workers, say, damaged)
    if checkpoint is None:
        yield None
        return
    uri, position = checkpoint
    name = from_first_rank(uuid.uuid4().hex[:8])
    directory = Path(tempfile.gettempdir()) / f"{_COPIES}{name}"  # on every machine
    with ExitStack() as held:
        if local_rank == 0:
            held.enter_context(storage.scratch(_COPIES, name))
            source = loading.fetch(uri, directory / "copy")
            if loading.needs_conversion(source, position, workers):
                loading.convert(source, directory)
        barrier()
        universal = directory if (directory / layout.UNIVERSAL_TAG).is_dir() else None
        yield Saved(uri, position, storage.local_path(uri) or directory / "copy", universal)
        barrier()


def _newest(
    home: str, rank: int, workers: int, say: Callable[[str], None], damaged: list[str]
) -> tuple[str, Position] | None:
    """Like `catalog.newest`, with the bytes shared among the workers."""
    for uri in from_first_rank(catalog.saved(home) if rank == 0 else None):
        position, entries, problem = from_first_rank(_inspected(uri) if rank == 0 else None)
        if not problem:
            # Files are dealt out by size, so that shares are about equal.
            share = sorted(entries, key=lambda entry: entry.size, reverse=True)[rank::workers]
            problem = next(filter(None, from_all_ranks(_problem(uri, share))), "")
        if not problem:
            return uri, position
        damaged.append(uri)
        if rank == 0:
            say(catalog.skipped(problem))
    return None


def _inspected(uri: str) -> tuple[Position | None, list[FileEntry], str]:
    try:
        return *catalog.inspect(uri), ""
    except CorruptError as error:
        return None, [], str(error)


def _problem(uri: str, entries: list[FileEntry]) -> str:
    try:
        storage.verify(uri, entries)
    except CorruptError as error:
        return str(error)
    return ""
