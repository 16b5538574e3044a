"""A network built in shares for ZeRO 3, because it may be larger than one worker's memory.

DeepSpeed shares a module's parameters out as soon as the module is made. A constructor that goes on to initialise the
parameters of its parts, ties them or computes with them would change empty tensors, without an error. So a small
network is built whole and shared out then, and a large one that does so is refused.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from maas_ray.errors import PreflightError
from maas_ray.tasks import NetworkSpec
from maas_ray.training.deepspeed.untrained import SHARE, share_of
from maas_ray.training.trainable import check_shardable, check_trainable

if TYPE_CHECKING:
    import torch

MAX_WHOLE_BYTES = 512 << 20
"""Largest network in fp32 that each worker builds whole: 134 million parameters."""

_READS = ("data", "detach", "clone")
_HARMLESS = ("requires_grad_",)


def build_sharded(network: NetworkSpec, task: Any, config: dict[str, Any]) -> "torch.nn.Module":
    """`network.build(task)`, of which each worker keeps only its share. All workers call it together.

    The initial weights are those of `network.build` in any stage, and do not depend on the number of workers.

    Args:
        network: the network's spec.
        task: the fitted task.
        config: DeepSpeed's configuration.

    Raises:
        PreflightError: DeepSpeed cannot train the network, or a network of this size cannot be built in shares.
    """
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    # Until this call DeepSpeed takes a worker for the only one.
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    if network.of_transformers:
        from transformers.integrations import HfDeepSpeedConfig

        # While this object lives, Transformers builds under `zero.Init` and gathers the parameters it initialises.
        held = HfDeepSpeedConfig(config)
        try:
            return network.build(task)
        finally:
            del held
    from deepspeed.runtime.zero import DeepSpeedTensorOverride
    from deepspeed.runtime.zero.partition_parameters import Init

    class Sharded(Init):  # type: ignore[misc]
        """`zero.Init` that casts parameters only.

        The original makes every new tensor in the training's precision, which changes random draws and buffers.
        """

        def _zero_init_param(self, param: Any) -> None:
            built = param.data = param.data.contiguous()
            if built.is_floating_point():
                param.data = built.to(self.dtype)
            super()._zero_init_param(param)
            if built.dtype != param.dtype:  # in case it turns out to be frozen
                setattr(param, SHARE, share_of(built, param.ds_tensor.numel(), self.get_partition_rank()))

    with torch.random.fork_rng([]):  # it may be built with values
        skeleton = network.skeleton(task)
    check_trainable(skeleton, config)
    if 4 * sum(parameter.numel() for parameter in skeleton.parameters()) <= MAX_WHOLE_BYTES:
        module = network.build(task).to(get_accelerator().current_device_name())
        Sharded(module=module, config_dict_or_path=config)
        return module
    check_shardable(skeleton)
    del skeleton
    with (
        Sharded(config_dict_or_path=config, tensor_overrides=[DeepSpeedTensorOverride.device]),
        _refusing_lost_values(),
    ):
        return network.build(task)


def _refusing_lost_values() -> Any:
    """A context in which it is an error to use the values of a parameter that is shared out already."""
    from torch.overrides import TorchFunctionMode

    class Refusing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(func, "__name__", "")
            if name == "__get__":
                name = getattr(getattr(func, "__self__", None), "__name__", "")
            if (name in _READS or (name[-1:] == "_" != name[:1] and name not in _HARMLESS)) and _is_out(args):
                raise PreflightError(
                    f"a constructor uses `{name}` of a parameter of shape {list(args[0].ds_shape)} in a part of it, "
                    "which ZeRO 3 has shared out already, as this network is large; the value would be lost. "
                    "Initialise parameters in the constructor of the module that holds them, or in a function given to "
                    "`self.apply`; or use stage 2 or lower.",
                    code="zero_3_unsupported",
                )
            return func(*args, **(kwargs or {}))

    return Refusing()


def _is_out(args: Any) -> bool:
    """True if an operation is on a parameter that is shared out."""
    return bool(args) and hasattr(args[0], "ds_id") and not args[0].numel()


def check_leaves(module: "torch.nn.Module") -> None:
    """Let each leaf of `zero_optimization.leaf_module` refuse a pass whose gradients DeepSpeed would reduce too early.

    DeepSpeed reduces a leaf's gradients when those of its inputs are there. If no input has one, Torch says so before
    the leaf has computed its own.
    """
    from deepspeed.utils import z3_leaf_module

    for name, part in module.named_modules():
        if z3_leaf_module(part) and any(parameter.requires_grad for parameter in part.parameters()):
            part.register_forward_pre_hook(partial(_check_leaf, name))


def _check_leaf(name: str, part: "torch.nn.Module", inputs: tuple[Any, ...]) -> None:
    import torch

    if torch.is_grad_enabled() and not any(isinstance(one, torch.Tensor) and one.requires_grad for one in inputs):
        raise PreflightError(
            f"deepspeed.zero_optimization.leaf_module names {name or type(part).__name__}, which gets no input with a "
            "gradient by position, as the first module of a network. Name modules behind it, or remove it.",
            code="zero_3_unsupported",
        )
