"""The export: from a checkpoint to a directory in Hugging Face layout.

It is a function of the checkpoint, the task and the spec alone: repeated after a crash, it writes the same bytes.

No process holds the whole model. The network is built without values, the checkpoint's files are mapped into memory
rather than read, and one output file is assembled at a time. So it needs memory for one file (`SHARD_SIZE`, or the
largest tensor if that is larger), and as much again for the mapped pages, which the system can reclaim at any time.
Measured with a model of 271 MiB on 2 workers and files of 20 MB: 60 MiB, under ZeRO 1 and 3.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import TrainingError
from maas_ray.tasks import NetworkSpec, Task
from maas_ray.training.checkpoints import layout

SHARD_SIZE = "5GB"
_MODEL_STATES = "mp_rank_00_model_states.pt"
_INDEX = "model.safetensors.index.json"


def export(saved: Path, dataset: PreparedDataset, network: NetworkSpec, directory: Path) -> None:
    """Consolidate a checkpoint's shards into fp32 safetensors, with every file that is needed to load them.

    Args:
        saved: local directory of a whole checkpoint.
        dataset: the training dataset, which holds the fitted task.
        network: the network's spec.
        directory: an empty local directory to fill.

    Raises:
        TrainingError: the checkpoint cannot be read, or is of another network.
    """
    task = dataset.task
    task.save(directory)
    module = network.skeleton(task)
    network.write_config(module, task, directory)
    tied = set(getattr(module, "all_tied_weights_keys", ()))  # as Transformers' modules declare them
    order = optimizer_order(task, module)
    write_weights(saved, module.state_dict(), tied, directory, SHARD_SIZE, order=order)


def optimizer_order(task: Task, module: Any) -> list[str]:
    """Names of the parameters in the order of the optimizer: group after group, as `Task.parameters` gives them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [item["params"] if isinstance(item, dict) else [item] for item in task.parameters(module)]
    return [names[id(parameter)] for group in groups for parameter in group]


def write_weights(
    saved: Path,
    skeleton: dict[str, Any],
    tied: set[str],
    directory: Path,
    shard_size: str,
    *,
    order: Sequence[str] | None = None,
) -> None:
    """Write a checkpoint's weights as safetensors, one file after the other.

    Args:
        saved: local directory of a whole checkpoint.
        skeleton: a tensor of the right shape and dtype for each name; its values do not matter.
        tied: names to omit, because they share another parameter's values. Otherwise safetensors would list them in
            the files' metadata, in an order that varies.
        directory: target directory.
        shard_size: largest size of a file, such as `5GB`; a tensor larger than that has one to itself.
        order: names of the parameters in the order of the optimizer. None: the module's.

    Raises:
        TrainingError: the checkpoint cannot be read, or its names or shapes differ from the skeleton's.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    wanted = {name: tensor for name, tensor in skeleton.items() if name not in tied}
    _check(saved, consolidated(saved, order), wanted, tied)
    split = split_torch_state_dict_into_shards(
        {name: tensor.to("meta") for name, tensor in wanted.items()}, max_shard_size=shard_size
    )
    for filename, names in split.filename_to_tensors.items():
        state = consolidated(saved, order)  # mapped again for each file, to release the pages of the previous one
        tensors = {name: state[name].contiguous().to(wanted[name].dtype) for name in names}
        save_file(tensors, directory / filename, metadata={"format": "pt"})
        del state, tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def consolidated(saved: Path, order: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole model's parameters and buffers by name, from the shards of all ranks; parameters are in fp32.

    Nothing is read yet: each value has a `shape`, and `contiguous()` makes a tensor of it. While one is held, the
    checkpoint's files stay mapped.

    Args:
        saved: local directory of a whole checkpoint.
        order: names of the parameters in the order of the optimizer. None: the module's.

    Raises:
        TrainingError: DeepSpeed cannot read its own checkpoint.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it has to guess
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
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
                return _unsharded(str(states / _MODEL_STATES), order)
            if (states / _MODEL_STATES).exists():
                return _cut_from_groups(str(states))
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(saved), tag=layout.TAG, lazy_mode=True))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(
            f"checkpoint {saved} cannot be consolidated: {error}", code="checkpoint_unreadable"
        ) from error


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


def _unsharded(path: str, order: Sequence[str] | None) -> dict[str, Any]:
    """The weights in rank 0's file under ZeRO 0. In 16 bits the module's are rounded, the optimizer's exact."""
    import torch

    saved = torch.load(path, map_location="cpu", weights_only=False)  # this platform wrote it
    state: dict[str, Any] = dict(saved["module"])
    groups = saved["optimizer"] or {}
    masters = [tensor for group in groups.get("fp32_groups", ()) for tensor in group]
    vectors = groups.get("fp32_groups_flat", ())
    if not masters and not vectors:
        return state
    # A parameter that is tied is in the optimizer once.
    named = {value.data_ptr(): name for name, value in reversed(state.items()) if name not in saved["buffer_names"]}
    shapes = {name: value.shape for name, value in state.items() if name in named.values()}
    if order is not None:
        shapes = {name: shapes[name] for name in order if name in shapes}
    start = 0
    for shape in shapes.values() if vectors else ():
        masters.append(_Cut(list(vectors), start, shape))
        start += shape.numel()
    if start != sum(vector.numel() for vector in vectors):
        raise ValueError(f"parameters have {start:,} values, but their fp32 copy has another length")
    for name, value in zip(shapes, masters, strict=True):
        if value.shape != shapes[name]:
            raise ValueError(f"{name} has shape {list(shapes[name])}, but its fp32 copy has {list(value.shape)}")
        state[name] = value
    return state


def _cut_from_groups(states: str) -> dict[str, Any]:
    """The weights of a checkpoint of ZeRO 1 or 2, read lazily. DeepSpeed's own function copies the whole model.

    A group of parameters is stored as one long vector, cut into a piece for each rank.
    """
    import torch
    from deepspeed.utils import zero_to_fp32

    (model,) = zero_to_fp32.parse_model_states(zero_to_fp32.get_model_state_files(states))
    _, workers, ranks, paddings = zero_to_fp32.parse_optim_states(zero_to_fp32.get_optim_files(states), states)
    state = {**model.buffers, **(model.frozen_param_fragments or {})}
    for group, shapes in enumerate(model.param_shapes):
        pieces = [of_rank[group] for of_rank in ranks]
        held, offset = sum(piece.numel() for piece in pieces), 0
        for position, (name, shape) in enumerate(shapes.items()):
            size = torch.Size(shape)
            state[name] = _Cut(pieces, offset, size)
            offset += size.numel() + (paddings[group][position] if paddings else 0)
        if not offset <= held < offset + 2 * workers:  # DeepSpeed pads the end of a group
            raise ValueError(f"parameters have {offset:,} values, but the ranks hold {held:,}")
    for name, other in model.shared_params:
        if other in state:
            state[name] = state[other]
    return state


def _check(saved: Path, state: dict[str, Any], wanted: dict[str, Any], tied: set[str]) -> None:
    """Refuse a checkpoint of another network."""
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is not of this network" for name in state if name not in wanted and name not in tied]
    problems += [
        f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise TrainingError(
            f"checkpoint {saved} does not fit its network: {'; '.join(problems[:5])}{more}. "
            "Was `network` changed since?",
            code="network_differs",
        )
