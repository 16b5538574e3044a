"""The optimizer's groups: parameters that weight decay applies to, and those that it spares.

A task may group its parameters itself. Parameters that it gives without a group are divided as Hugging Face's Trainer
does: biases and the weights of normalisation layers do not decay. Embeddings do not either, because decay would pull
the rows of rare tokens to 0, which few gradients reach.
"""

import re
from typing import TYPE_CHECKING, Any

from maas_ray.tasks import Task

if TYPE_CHECKING:
    import torch

Groups = list[dict[str, Any]]
"""As Torch's optimizers take them: `params`, and settings that differ for these."""

_NORMALISES = re.compile(r"Norm(\dd)?$")
"""Ends of the names of classes that normalise, such as `BatchNorm2d` and `LlamaRMSNorm`."""


def optimizer_groups(task: Task, module: "torch.nn.Module", *, spare: bool) -> Groups:
    """The groups of the optimizer. They depend on the task and the network alone.

    Args:
        task: the fitted task, whose own groups come first and stay as they are.
        module: the network.
        spare: True to spare parameters from weight decay. False: as version 0.2, in one group.
    """
    groups, single = Groups(), list["torch.nn.Parameter"]()
    for item in task.parameters(module):
        if isinstance(item, dict):
            groups.append(item | {"params": list(item["params"])})
        else:
            single.append(item)
    if not spare:
        return [*groups, {"params": single}] if single else groups
    spared = _spared(module)
    decayed = {"params": [p for p in single if p.requires_grad and id(p) not in spared]}
    rest = {"params": [p for p in single if p.requires_grad and id(p) in spared], "weight_decay": 0.0}
    return [*groups, *(group for group in (decayed, rest) if group["params"])]


def trained_names(module: "torch.nn.Module", groups: Groups) -> list[str]:
    """Names of the parameters that the optimizer updates, in its order. A tied one has its first name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(p)] for group in groups for p in group["params"] if p.requires_grad and numel(p)]


def numel(parameter: Any) -> int:
    """The number of values of a parameter, which ZeRO 3 may hold in shares."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _spared(module: "torch.nn.Module") -> set[int]:
    """Ids of the parameters that do not decay. A tied one counts as an embedding if it is one anywhere."""
    import torch

    spared = set()
    for part in module.modules():
        embeds = isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag)
        whole = embeds or _NORMALISES.search(type(part).__name__)
        for parameter in part.parameters(recurse=False):
            if whole or len(getattr(parameter, "ds_shape", parameter.shape)) < 2:
                spared.add(id(parameter))
    return spared
