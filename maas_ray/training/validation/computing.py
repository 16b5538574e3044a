"""A network outside the engine that computes in the engine's precision, so that both are compared like with like."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maas_ray.training.deepspeed.document import value_at

if TYPE_CHECKING:
    import torch

_NUMBER_FORMATS = {"bf16": "bfloat16", "fp16": "float16"}


def compute_as(model: "torch.nn.Module", config: dict[str, Any], dtypes: "Mapping[str, torch.dtype]") -> Any:
    """Cast a network's parameters as an engine does, and let it cast as `torch_autocast` does while it computes.

    Args:
        model: the network, on its device.
        config: the engine's resolved configuration.
        dtypes: those of the engine's parameters by name. One that is not named follows from the configuration; buffers
            stay as they are.
    """
    import torch

    enabled = [name for name in _NUMBER_FORMATS if value_at(config, (name, "enabled")) is True]
    default = getattr(torch, _NUMBER_FORMATS[enabled[0]]) if enabled else None
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtypes.get(name, default or parameter.dtype))
    if autocasts(config):
        device = next(model.parameters()).device.type
        model.forward = torch.autocast(device, _autocast_dtype(config))(model.forward)
    return model


def autocasts(config: dict[str, Any]) -> bool:
    """True if an engine of this configuration casts while it computes."""
    return value_at(config, ("torch_autocast", "enabled")) is True


def _autocast_dtype(config: dict[str, Any]) -> Any:
    """The dtype as DeepSpeed reads it. None: Torch's default for the device."""
    from deepspeed.runtime.config import get_torch_autocast_dtype

    return get_torch_autocast_dtype(config)
