"""A rank's part of a checkpoint: copied to host memory in a step, written to storage while training goes on.

A step waits only for `take`; `Snapshot.write` streams to storage beside the training.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from maas_ray import storage
from maas_ray.storage import FileEntry
from maas_ray.training.checkpoints import layout
from maas_ray.training.checkpoints.position import Position

_Result = TypeVar("_Result")


@dataclass
class Snapshot:
    """One rank's part of a checkpoint, held in host memory until it is written."""

    rank: int
    position: Position
    states: dict[str, Any]
    """Objects for `torch.save`, by path."""
    scratch: "tempfile.TemporaryDirectory[str]"
    """Files that DeepSpeed wrote itself, such as parameters offloaded to NVMe."""

    def write(self, uri: str, retry_seconds: float = 0.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Write the files to `uri`, the manifest last. Failed writes are retried with backoff.

        Args:
            uri: the checkpoint's directory.
            retry_seconds: how long a file is retried before that counts as a failure.
            say: called with a line for each retry.

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
                entries.append(FileEntry(layout.POSITION, *put(layout.POSITION, partial(_put_bytes, position))))
            listing = [{"path": e.path, "size": e.size, "sha256": e.sha256} for e in entries]
            put(layout.manifest(self.rank), lambda target: storage.write_json(target, listing))
        self.states.clear()


def take(engine: Any, rank: int, position: Position) -> Snapshot:
    """Copy one rank's state to host memory. All ranks call it together, after `build_engine` and `hold`."""
    import torch

    scratch = tempfile.TemporaryDirectory(prefix="maas-checkpoint-")
    untrained = {layout.UNTRAINED: engine.untrained.state(engine)}
    engine.save_checkpoint(scratch.name, tag=layout.TAG, client_state=untrained, save_latest=False)
    states = {
        Path(path).relative_to(scratch.name).as_posix(): state for path, state in engine.checkpoint_engine.taken.items()
    }
    engine.checkpoint_engine.taken.clear()
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    states[layout.random_state(rank)] = random_state
    return Snapshot(rank, position, states, scratch)


def hold(engine: Any) -> None:
    """Make DeepSpeed's engine keep in memory the state that it would write to files."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class Holding(TorchCheckpointEngine):  # type: ignore[misc]
        taken: dict[str, Any] = {}

        def save(self, state_dict: Any, path: str) -> None:
            self.taken[path] = copied(state_dict, {})

        def preserves_storage_sharing(self) -> bool:
            return False  # `copied` copies each view by itself, so DeepSpeed need not

    engine.checkpoint_engine = Holding()


def copied(value: Any, copies: dict[Any, Any]) -> Any:
    """A copy of a state dict that later steps do not change, with tensors on the CPU.

    A tensor that occurs twice is copied once.

    Args:
        value: the state dict, or a value inside it.
        copies: tensors copied so far.
    """
    import torch

    if isinstance(value, torch.Tensor):
        key = value.data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype, value.device
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict):
        return type(value)((name, copied(inner, copies)) for name, inner in value.items())
    if isinstance(value, list):
        return [copied(inner, copies) for inner in value]
    if type(value) is tuple:
        return tuple(copied(inner, copies) for inner in value)
    return copy.deepcopy(value)


def _save(state: Any, uri: str) -> tuple[int, str]:
    import torch

    return storage.put(uri, partial(torch.save, state))


def _put_bytes(content: bytes, uri: str) -> tuple[int, str]:
    return storage.put(uri, lambda target: target.write(content))
