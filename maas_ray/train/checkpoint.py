"""A training checkpoint: DeepSpeed's sharded state of every rank, and where the run stood.

    state/…                 DeepSpeed's own files, each rank its shards
    rank-00000.json         what rank 0 wrote: every file's size and sha256; one such list for each rank
    rank-00000.random.pt    its random state
    position.json           written by rank 0: step, number of workers, metrics

Ray Train merges the directories of all ranks and registers the checkpoint once every rank has delivered;
`check` makes sure that what lies there is what they delivered.
"""

import json
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.errors import CorruptError
from maas_ray.spec import Spec

TAG = "state"


class Position(Spec):
    """Where a run stands."""

    step: int
    """Optimizer steps taken."""
    workers: int
    """Number of workers whose shards make up the checkpoint."""
    metrics: dict[str, float] = {}
    """Metrics measured at this step by `split/metric`."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed's configuration as it ran: its own document."""


def save(engine: Any, directory: Path, rank: int, position: Position) -> None:
    """Write one rank's part of a checkpoint into a local directory. All ranks call it together."""
    import torch

    engine.save_checkpoint(str(directory), tag=TAG)
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    torch.save(random_state, directory / f"rank-{rank:05d}.random.pt")
    if rank == 0:
        (directory / "position.json").write_text(json.dumps(position.document()), encoding="utf-8")
    entries = [
        storage.file_entry(path, path.relative_to(directory).as_posix())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    ]
    listing = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in entries]
    (directory / f"rank-{rank:05d}.json").write_text(json.dumps(listing), encoding="utf-8")


def position_of(directory: Path) -> Position:
    """Where the run stood."""
    try:
        document = json.loads((directory / "position.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptError(f"checkpoint {directory} has no readable position.json: {error}") from error
    return Position.parse(document, source=str(directory))


def check(directory: Path) -> Position:
    """Make sure that every rank's files are there and whole.

    Raises:
        CorruptError: names the first file that is missing or differs.
    """
    position = position_of(directory)
    for rank in range(position.workers):
        listing = directory / f"rank-{rank:05d}.json"
        if not listing.is_file():
            raise CorruptError(f"checkpoint {directory}: the shards of rank {rank} are missing.")
        for entry in json.loads(listing.read_text(encoding="utf-8")):
            path = directory / entry["path"]
            if not path.is_file() or path.stat().st_size != entry["size"]:
                raise CorruptError(f"checkpoint {directory}: {entry['path']} is missing or cut off.")
            if storage.file_entry(path, entry["path"]).sha256 != entry["sha256"]:
                raise CorruptError(f"checkpoint {directory}: {entry['path']} is damaged (its sha256 differs).")
    return position


def load(engine: Any, directory: Path, rank: int) -> Position:
    """Put the engine and this rank's random state where the run stood. All ranks call it together."""
    import torch

    position = position_of(directory)
    engine.load_checkpoint(str(directory), tag=TAG)
    random_state = torch.load(directory / f"rank-{rank:05d}.random.pt", weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    return position
