"""Checkpoints made without training."""

from pathlib import Path

import torch


def save_checkpoint(module: torch.nn.Module, directory: Path, stage: int, workers: int = 3) -> Path:
    """A checkpoint's files as far as they hold weights, laid out as DeepSpeed does for a number of workers."""
    state = directory / "state"
    state.mkdir(parents=True)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    model = {
        "module": module.state_dict() if stage < 3 else {},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{name: value.shape for name, value in parameters.items()}],
        "shared_params": {} if "lm_head.weight" in parameters else {"lm_head.weight": "model.embed_tokens.weight"},
        "ds_version": "0",
    }
    if stage < 3:
        torch.save(model, state / "mp_rank_00_model_states.pt")
    if stage == 0:
        return directory
    values = [value.flatten() for value in parameters.values()]
    if stage == 1:
        flat = torch.cat(values)
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * workers)))
        ranks = list(flat.chunk(workers))
    else:
        padded = [torch.nn.functional.pad(value, (0, -len(value) % workers)) for value in values]
        ranks = [torch.cat([value.chunk(workers)[rank] for value in padded]) for rank in range(workers)]
    key = "single_partition_of_fp32_groups" if stage == 1 else "fp32_flat_groups"
    for rank, piece in enumerate(ranks):
        optimizer = {"zero_stage": stage, "partition_count": workers, key: [piece.clone()]}
        torch.save({"optimizer_state_dict": optimizer}, state / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(model, state / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    return directory
