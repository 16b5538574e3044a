"""Loading a checkpoint: fetched to this machine, converted for another number of workers, put into an engine."""

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.training.checkpoints import layout
from maas_ray.training.checkpoints.catalog import inspect
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.weights import consolidated
from maas_ray.training.deepspeed.document import zero_stage


def fetch(uri: str, directory: Path) -> Path:
    """A whole checkpoint's files on this machine: their own directory, or verified copies in `directory`."""
    return storage.local_path(uri) or storage.fetch(uri, inspect(uri)[1], directory)


def convert(source: Path, directory: Path) -> None:
    """Write DeepSpeed's universal format of a checkpoint, which any number of workers can load.

    One rank's part is converted after the other, and parts are mapped into memory, whose pages the system can reclaim.

    Args:
        source: the checkpoint's files.
        directory: where `state_universal/` is written.
    """
    from deepspeed.checkpoint.ds_to_universal import main
    from torch.utils.serialization import config

    arguments = Namespace(
        input_folder=str(source / layout.TAG),
        output_folder=str(directory / layout.UNIVERSAL_TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # DeepSpeed prints each step of the conversion, and raises its errors.
    with (
        config.patch("load.mmap", True),  # type: ignore[attr-defined]  # added when torch is imported
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        main(arguments)


def needs_conversion(source: Path, position: Position, workers: int) -> bool:
    """True if a checkpoint's optimizer state is sharded for another number of workers."""
    return position.workers != workers and any((source / layout.TAG).glob("*zero_pp_rank_*optim_states.pt"))


def load(engine: Any, directory: Path, tag: str, source: Path, rank: int, seed: list[int]) -> None:
    """Restore the engine and this rank's random state. All ranks call it together.

    Args:
        engine: DeepSpeed's.
        directory: directory of the engine's files.
        tag: name of their directory inside it.
        source: the checkpoint's own files.
        rank: this worker's.
        seed: seeds the random state of a rank that the checkpoint does not have.
    """
    import numpy as np
    import torch

    engine.load_checkpoint(str(directory), tag=tag)
    if tag == layout.UNIVERSAL_TAG and zero_stage(engine.config) == 3:
        _restore_groups(engine, directory / tag)
    engine.untrained.restore(engine, rank, consolidated(source))
    path = source / layout.random_state(rank)
    if not path.is_file():
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        return
    random_state = torch.load(path, weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])


def _restore_groups(engine: Any, states: Path) -> None:
    """Give each group of the optimizer its own settings, such as its weight decay, and its own count of steps.

    When DeepSpeed loads its universal format under ZeRO 3, all groups get the settings of the first one, and share one
    tensor as their count, which then rises once for each group in a step (`findings/deepspeed-universal-groups.sh`).
    """
    import torch

    saved = torch.load(states / "zero" / "optimizer_state.pt", map_location="cpu", mmap=True, weights_only=False)
    for group, settings in zip(engine.optimizer.param_groups, saved["param_groups"], strict=True):
        group |= {name: value for name, value in settings.items() if name != "params"}
    for state in engine.optimizer.optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
