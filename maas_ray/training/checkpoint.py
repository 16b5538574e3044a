"""A training checkpoint: DeepSpeed's sharded state of every rank, and where the run stood.

    <run>/step-00000200-3fa9c1/
        state/…                 DeepSpeed's own files, each rank its shards
        rank-00000.random.pt    rank 0's random state
        position.json           written by rank 0: step, number of workers, ledger, metrics
        rank-00000.json         rank 0's manifest, put last: its files with size and sha256; one for each rank

It counts when every rank's manifest is there and every file is as its manifest says; anything less was cut
off on the way, and the run goes on from the one before.

A step waits only for `take`, which copies the state to host memory; `Snapshot.write` then writes it straight
to storage, beside the training. A checkpoint of another number of workers is turned into DeepSpeed's universal
format on its way in.
"""

import contextlib
import io
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from maas_ray import storage
from maas_ray.errors import CorruptError, NotFoundError
from maas_ray.spec import Spec
from maas_ray.storage import FileEntry
from maas_ray.training.plan import Ledger

TAG = "state"
UNIVERSAL_TAG = f"{TAG}_universal"
_POSITION = "position.json"
_VALIDATION = "validation.json"
_PREFIX = "step-"
_BEST = "validation/loss"
_Result = TypeVar("_Result")


class Position(Spec):
    """Where a run stands."""

    step: int
    """Optimizer steps taken."""
    workers: int
    """Number of workers whose shards make up the checkpoint."""
    rows: int = 0
    """Rows trained on; with `digest`, the ledger."""
    digest: int = 0
    """The ledger's hash of which rows they were."""
    metrics: dict[str, float] = {}
    """Metrics measured at this very step by `split/metric`; empty: nothing was."""
    ended: str = ""
    """Why the run ended here. Empty: it goes on."""
    seconds: float = 0.0
    """How long the run has trained, all attempts together."""
    lowest_loss: float | None = None
    """The lowest validation loss so far. None: not measured yet."""
    validations_since: int = 0
    """Validations since then."""
    unjudged: float | None = None
    """The newest validation loss, at which early stopping has not looked yet."""
    validating: str = ""
    """Name of the checkpoint that is being validated beside the training. Empty: none is."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed's configuration as it ran: its own document."""

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.rows, self.digest)


# --- saving ----------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """One rank's part of a checkpoint, held in host memory until it is written."""

    rank: int
    position: Position
    states: dict[str, Any]
    """What `torch.save` will write, by path."""
    scratch: "tempfile.TemporaryDirectory[str]"
    """What DeepSpeed wrote itself, such as parameters offloaded to NVMe."""

    def write(self, uri: str, retry_seconds: float = 0.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Put the files at `uri`, the manifest last. What fails is tried again, at growing intervals.

        Args:
            uri: the checkpoint's directory.
            retry_seconds: how long a file is tried again before that counts as a failure.
            say: told of what had to be tried again.

        Raises:
            StorageError: a file could not be written.
        """

        def put(path: str, write: Callable[[str], _Result]) -> _Result:
            return storage.retry_with_backoff(partial(write, storage.join(uri, path)), retry_seconds, say)

        with self.scratch as scratch:
            entries = [FileEntry(path, *put(path, partial(_save, state))) for path, state in self.states.items()]
            for local in sorted(file for file in Path(scratch).rglob("*") if file.is_file()):
                path = local.relative_to(scratch).as_posix()
                entries.append(FileEntry(path, *put(path, partial(storage.upload, local))))
            if self.rank == 0:
                position = json.dumps(self.position.document(), indent=2).encode()
                entries.append(FileEntry(_POSITION, *put(_POSITION, partial(_put_bytes, position))))
            listing = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in entries]
            put(_manifest(self.rank), lambda target: storage.write_json(target, listing))
        self.states.clear()


def take(engine: Any, rank: int, position: Position) -> Snapshot:
    """Copy one rank's state to host memory. All ranks call it together; `hold` must have seen the engine."""
    import torch

    scratch = tempfile.TemporaryDirectory(prefix="maas-checkpoint-")
    engine.save_checkpoint(scratch.name, tag=TAG, save_latest=False)
    states = {
        Path(path).relative_to(scratch.name).as_posix(): state for path, state in engine.checkpoint_engine.taken.items()
    }
    engine.checkpoint_engine.taken.clear()
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    states[_random(rank)] = random_state
    return Snapshot(rank, position, states, scratch)


def hold(engine: Any) -> None:
    """Make DeepSpeed's engine keep in memory what it would write."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class Holding(TorchCheckpointEngine):  # type: ignore[misc]
        taken: dict[str, Any] = {}

        def save(self, state_dict: Any, path: str) -> None:
            self.taken[path] = _copied(state_dict, {})

        def preserves_storage_sharing(self) -> bool:
            return False  # `_copied` copies each view by itself, so DeepSpeed need not

    engine.checkpoint_engine = Holding()


def _copied(value: Any, copies: dict[Any, Any]) -> Any:
    """A state dict that later steps do not change: tensors on the CPU; one that stands twice is copied once."""
    import copy

    import torch

    if isinstance(value, torch.Tensor):
        key = value.data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype, value.device
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict):
        return type(value)((name, _copied(inner, copies)) for name, inner in value.items())
    if isinstance(value, list):
        return [_copied(inner, copies) for inner in value]
    if type(value) is tuple:
        return tuple(_copied(inner, copies) for inner in value)
    return copy.deepcopy(value)


def _save(state: Any, uri: str) -> tuple[int, str]:
    import torch

    return storage.put(uri, partial(torch.save, state))


def _put_bytes(content: bytes, uri: str) -> tuple[int, str]:
    return storage.put(uri, lambda target: target.write(content))


# --- finding ---------------------------------------------------------------------------------------


def saved(home: str) -> list[str]:
    """URIs of a run's checkpoints, whole or not, the newest first."""
    names = [name for name in storage.list_directory(home) if name.startswith(_PREFIX)]
    return [storage.join(home, name) for name in sorted(names, reverse=True)]


def name_of(step: int, attempt: str) -> str:
    """A checkpoint's name; unique to the attempt, so that shards of one that died are never mixed in."""
    return f"{_PREFIX}{step:08d}-{attempt}"


def inspect(uri: str) -> tuple[Position, list[FileEntry]]:
    """Where the run stood, and every rank's files, all of them there with their sizes; no byte of them is read.

    What was measured on the checkpoint afterwards is in the position's metrics.

    Raises:
        CorruptError: something is missing or cut off; says what.
    """
    try:
        position = Position.parse(storage.read_json(storage.join(uri, _POSITION)), source=uri)
        listings = [storage.read_json(storage.join(uri, _manifest(rank))) for rank in range(position.workers)]
        entries = [FileEntry(e["path"], e["size"], e["sha256"]) for listing in listings for e in listing]
    except NotFoundError as error:
        raise CorruptError(f"checkpoint {uri} is not whole: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"checkpoint {uri} has a manifest that cannot be read: {error}") from error
    storage.check_sizes(uri, entries)
    return position.model_copy(update={"metrics": position.metrics or validation(uri)}), entries


def validation(uri: str) -> dict[str, float]:
    """What was measured on a checkpoint beside the training. Empty: nothing was, so far."""
    try:
        return {name: float(value) for name, value in storage.read_json(storage.join(uri, _VALIDATION)).items()}
    except NotFoundError:
        return {}


def put_validation(uri: str, metrics: dict[str, float]) -> None:
    """Put what was measured on a checkpoint into its directory."""
    storage.write_json(storage.join(uri, _VALIDATION), metrics)


def newest(home: str, say: Callable[[str], None]) -> tuple[str, Position] | None:
    """The newest checkpoint of a run that is whole, every byte verified; `say` is told of those that are not."""
    for uri in saved(home):
        try:
            position, entries = inspect(uri)
            storage.verify(uri, entries)
        except CorruptError as error:
            say(passed_over(str(error)))
            continue
        return uri, position
    return None


def passed_over(problem: str) -> str:
    """What is said of a checkpoint that is not whole."""
    return f"{problem}\nfalling back to the checkpoint before"


def best(home: str) -> tuple[str, Position] | None:
    """The whole checkpoint with the lowest validation loss, every byte verified. None: no loss was measured.

    Raises:
        CorruptError: it is damaged.
    """
    measured = []
    for uri in saved(home):
        with contextlib.suppress(CorruptError):
            position, entries = inspect(uri)
            if _BEST in position.metrics:
                measured.append((position.metrics[_BEST], uri, position, entries))
    if not measured:
        return None
    _, uri, position, entries = min(measured, key=lambda one: one[0])
    storage.verify(uri, entries)
    return uri, position


def prune(home: str, keep: int, validating: str = "") -> None:
    """Delete what is older than the newest `keep` whole checkpoints.

    The one of the lowest validation loss stays, and so does the one named `validating`.
    """
    whole: list[tuple[str, Position]] = []
    broken: list[str] = []
    for uri in saved(home):
        try:
            whole.append((uri, inspect(uri)[0]))
        except CorruptError:
            broken += [uri] if whole else []  # a newer one may be on its way
    losses = [(position.metrics[_BEST], uri) for uri, position in whole if _BEST in position.metrics]
    kept = {uri for uri, _ in whole[:keep]} | {uri for _, uri in sorted(losses)[:1]}
    kept |= {storage.join(home, validating)} if validating else set()
    for uri in [*broken, *(uri for uri, _ in whole)]:
        if uri not in kept:
            storage.delete(uri)


# --- loading ---------------------------------------------------------------------------------------


def fetch(uri: str, directory: Path) -> Path:
    """A whole checkpoint's files on this machine: where they lie, or verified copies in `directory`."""
    return storage.local_path(uri) or storage.fetch(uri, inspect(uri)[1], directory)


def universal(source: Path, directory: Path) -> None:
    """Write DeepSpeed's universal format of a checkpoint, which any number of workers can load.

    Args:
        source: the checkpoint's files.
        directory: where `state_universal/` goes.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = Namespace(
        input_folder=str(source / TAG),
        output_folder=str(directory / UNIVERSAL_TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # It prints each of its steps; what goes wrong it raises.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)


def needs_conversion(source: Path, position: Position, workers: int) -> bool:
    """Whether a checkpoint's optimizer state is sharded for another number of workers."""
    return position.workers != workers and any((source / TAG).glob("*zero_pp_rank_*optim_states.pt"))


def load(engine: Any, directory: Path, tag: str, source: Path, rank: int, seed: list[int]) -> None:
    """Put the engine and this rank's random state where the run stood. All ranks call it together.

    Args:
        engine: DeepSpeed's.
        directory: where the engine's files lie.
        tag: the directory of them inside it.
        source: the checkpoint's own files.
        rank: this worker's.
        seed: what a rank that the checkpoint did not have draws its random state from.
    """
    import numpy as np
    import torch

    engine.load_checkpoint(str(directory), tag=tag)
    path = source / _random(rank)
    if not path.is_file():
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        return
    random_state = torch.load(path, weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])


def remove(directory: Path) -> None:
    """Remove a local copy."""
    shutil.rmtree(directory, ignore_errors=True)


def _manifest(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _random(rank: int) -> str:
    return f"rank-{rank:05d}.random.pt"
