"""The weights in a checkpoint: all parameters and buffers of the network by name, from the files of all ranks.

A parameter that the optimizer updates is in its fp32 copy, cut into pieces. All others, frozen parameters and buffers,
are in the module's state, and `UNTRAINED` holds the values of those that the training's precision rounds.
"""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray.errors import TrainingError
from maas_ray.training.checkpoints import layout

_MODEL_STATES = "mp_rank_00_model_states.pt"


def consolidated(saved: Path, order: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole network's parameters and buffers by name. Trained parameters are in fp32, others as they were built.

    Nothing is read yet: each value has a `shape`, and `contiguous()` makes a tensor of it. While one is held, the
    checkpoint's files stay mapped.

    Args:
        saved: local directory of a whole checkpoint.
        order: names of the trained parameters in the order of the optimizer, for checkpoints that do not hold them.
            None: the module's.

    Raises:
        TrainingError: DeepSpeed cannot read its own checkpoint.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it has to guess
    from torch.utils.serialization import config

    states = saved / layout.TAG
    sharded = any(states.glob("*zero_pp_rank_*optim_states.pt"))
    try:
        # DeepSpeed prints each step, and raises its errors.
        with (
            config.patch("load.mmap", True),  # type: ignore[attr-defined]  # added when torch is imported
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            if not sharded:
                return _unsharded(states, order)
            if (states / _MODEL_STATES).exists():
                return _cut_from_groups(states)
            return _cut_from_shards(saved)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"checkpoint {saved} cannot be consolidated: {error}", code="checkpoint_unreadable"
        ) from error


def dtypes_in(saved: Path) -> dict[str, Any]:
    """The dtypes by name of the weights that the engine computed with. Empty under ZeRO 3, which does not save them."""
    from torch.utils.serialization import config

    path = saved / layout.TAG / _MODEL_STATES
    if not path.exists():
        return {}
    with config.patch("load.mmap", True):  # type: ignore[attr-defined]  # added when torch is imported
        return {name: value.dtype for name, value in _load(path)["module"].items()}


@dataclass(frozen=True)
class _Cut:
    """A parameter inside a vector that is stored in pieces."""

    pieces: list[Any]
    start: int
    """Position of its first value in the vector."""
    shape: Any

    def contiguous(self) -> Any:
        import torch

        low, high, parts = self.start, self.start + self.shape.numel(), []
        for piece in self.pieces:
            parts.append(piece[max(low, 0) : max(high, 0)])
            low, high = low - piece.numel(), high - piece.numel()
        return torch.cat(parts).view(self.shape)


def _load(path: Path) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)  # this platform wrote it
    return state


def _unsharded(states: Path, order: Sequence[str] | None) -> dict[str, Any]:
    """The weights in rank 0's file under ZeRO 0. In 16 bits the module's are rounded, the optimizer's exact."""
    saved = _load(states / _MODEL_STATES)
    state: dict[str, Any] = dict(saved["module"])
    untrained = saved.get(layout.UNTRAINED)
    exact = untrained["values"] if untrained else {}
    groups = saved["optimizer"] or {}
    masters = [tensor for group in groups.get("fp32_groups", ()) for tensor in group]
    vectors = groups.get("fp32_groups_flat", ())
    if not masters and not vectors:
        return state | exact
    # A parameter that is tied is in the optimizer once.
    named = {value.data_ptr(): name for name, value in reversed(state.items()) if name not in saved["buffer_names"]}
    shapes = {name: value.shape for name, value in state.items() if name in named.values()}
    trained = untrained["trained"] if untrained else order
    if trained is not None:
        shapes = {name: shapes[name] for name in trained if name in shapes}
    start = 0
    for shape in shapes.values() if vectors else ():
        masters.append(_Cut(list(vectors), start, shape))
        start += shape.numel()
    if start != sum(vector.numel() for vector in vectors):
        raise ValueError(f"parameters have {start:,} values, but their fp32 copy has another length")
    ties = {name: named.get(value.data_ptr()) for name, value in state.items() if value.numel()}
    for name, value in zip(shapes, masters, strict=True):
        if value.shape != shapes[name]:
            raise ValueError(f"{name} has shape {list(shapes[name])}, but its fp32 copy has {list(value.shape)}")
        state[name] = value
    state |= {name: state[other] for name, other in ties.items() if other in shapes}
    return state | exact


def _cut_from_groups(states: Path) -> dict[str, Any]:
    """The weights of a checkpoint of ZeRO 1 or 2, read lazily. DeepSpeed's own function copies the whole model.

    A group of parameters is stored as one long vector, cut into a piece for each rank.
    """
    import torch
    from deepspeed.utils import zero_to_fp32

    saved = _load(states / _MODEL_STATES)
    files = zero_to_fp32.get_optim_files(str(states))
    if any(Path(file).name.startswith("bf16_") for file in files):
        ranks, paddings = _of_bf16_optimizer(states), None
    else:
        _, _, ranks, paddings = zero_to_fp32.parse_optim_states(files, str(states))
    workers = len(ranks)
    state: dict[str, Any] = dict(saved["module"])
    for group, shapes in enumerate(saved["param_shapes"]):
        pieces = [of_rank[group] for of_rank in ranks]
        held, offset = sum(piece.numel() for piece in pieces), 0
        for position, (name, shape) in enumerate(shapes.items()):
            size = torch.Size(shape)
            state[name] = _Cut(pieces, offset, size)
            offset += size.numel() + (paddings[group][position] if paddings else 0)
        if not offset <= held < offset + 2 * workers:  # DeepSpeed pads the end of a group
            raise ValueError(f"parameters have {offset:,} values, but the ranks hold {held:,}")
    for name, other in saved["shared_params"].items():
        if other in state:
            state[name] = state[other]
    return state | _exact(saved)


def _of_bf16_optimizer(states: Path) -> list[list[Any]]:
    """Each rank's piece of each group, as the optimizer saves them that accumulates bf16 gradients in fp32.

    DeepSpeed's own function does not read its files (`zero_to_fp32` looks for a ZeRO stage in them).
    """
    files = sorted(states.glob("bf16_*_optim_states.pt"), key=_rank)
    optimizers = [_load(file)["optimizer_state_dict"] for file in files]
    return [list(optimizer["single_partition_of_fp32_groups"]) for optimizer in optimizers]


def _cut_from_shards(saved: Path) -> dict[str, Any]:
    """The weights of a checkpoint of ZeRO 3, read lazily. Every parameter is cut into a piece for each rank."""
    import torch
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, Any] = dict(
        get_fp32_state_dict_from_zero_checkpoint(
            str(saved), tag=layout.TAG, exclude_frozen_parameters=True, lazy_mode=True
        )
    )
    files = (saved / layout.TAG).glob("*zero_pp_rank_*_model_states.pt")
    ranks = [_load(path) for path in sorted(files, key=_rank)]
    first = ranks[0]
    state |= {name: first["module"][name] for name in first["buffer_names"]}
    for name, shape in (first.get("frozen_param_shapes") or {}).items():
        pieces = [_exact(rank).get(name, rank["frozen_param_fragments"][name]) for rank in ranks]
        state[name] = _Cut(pieces, 0, torch.Size(shape))
    # DeepSpeed does not know the names of modules that are used twice.
    for name, other in {**(first.get(layout.UNTRAINED) or {}).get("shared", {}), **first["shared_params"]}.items():
        if other in state:
            state.setdefault(name, state[other])
    return state


def _exact(saved: dict[str, Any]) -> dict[str, Any]:
    """Values of parameters that are not trained, if the module's are rounded."""
    values: dict[str, Any] = (saved.get(layout.UNTRAINED) or {"values": {}})["values"]
    return values


def _rank(path: Path) -> int:
    (rank,) = re.findall(r"zero_pp_rank_(\d+)_", path.name)
    return int(rank)
