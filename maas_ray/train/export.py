"""From the last checkpoint of a run to a directory in Hugging Face layout.

A function of the checkpoint, the task and the spec alone: done again after a crash it writes the same bytes.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import TrainingError
from maas_ray.tasks import NetworkSpec
from maas_ray.train import checkpoint

SHARD_SIZE = "5GB"


def export(saved: Path, dataset: PreparedDataset, network: NetworkSpec, directory: Path) -> None:
    """Consolidate a checkpoint's shards into safetensors, fp32, with all that is needed to load them.

    Args:
        saved: local directory of a whole checkpoint.
        dataset: what it was trained on: the fitted task comes from it.
        network: the network's spec.
        directory: an empty local directory to fill.
    """
    from huggingface_hub import save_torch_state_dict

    task = dataset.task
    task.save(directory)
    module = network.build(task)
    module.load_state_dict(consolidated(saved), strict=True)
    network.write_config(module, task, directory)
    # Left in, tied tensors would be named in the files' metadata, which safetensors writes in no certain order.
    tied = set(_tied(module))
    weights = {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
    save_torch_state_dict(weights, str(directory), max_shard_size=SHARD_SIZE, metadata={"format": "pt"})


def consolidated(saved: Path) -> dict[str, Any]:
    """The whole model's parameters and buffers in fp32, from the shards of all ranks.

    Raises:
        TrainingError: DeepSpeed cannot read its own checkpoint.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it has to guess
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    sharded = any((saved / checkpoint.TAG).glob("*zero_pp_rank_*optim_states.pt"))
    try:
        if sharded:
            # It prints each of its steps; what goes wrong it raises.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return dict(get_fp32_state_dict_from_zero_checkpoint(str(saved), tag=checkpoint.TAG))
        # ZeRO 0: rank 0's file holds everything. DeepSpeed's files are pickles of our own making.
        states = torch.load(
            saved / checkpoint.TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(f"checkpoint {saved} cannot be consolidated: {error}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in states["module"].items()}


def _tied(module: Any) -> list[str]:
    """Names of tensors that share another's storage, as Transformers' modules declare them."""
    return sorted(getattr(module, "_tied_weights_keys", None) or [])
