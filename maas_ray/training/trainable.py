"""Networks that DeepSpeed cannot train, or would train otherwise than they say, refused before it has them.

DeepSpeed keeps parameters in vectors, and updates a copy of them in fp32 under ZeRO and in 16 bits. It either fails on
what does not fit that form, in words about its own code, or trains something else.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maas_ray.errors import PreflightError
from maas_ray.training.deepspeed.document import value_at, zero_stage
from maas_ray.training.deepspeed.fields import PRECISIONS

if TYPE_CHECKING:
    import torch

_MOST = 5
LOST = (
    "which is lost, because DeepSpeed updates a copy of them. Normalise the result instead, or train with "
    "`precision: fp32` and zero_optimization.stage 0"
)


def updates_copies(config: dict[str, Any]) -> bool:
    """True if DeepSpeed updates copies of the parameters, and replaces the parameters by them after each step."""
    return zero_stage(config) > 0 or any(value_at(config, (name, "enabled")) is True for name in PRECISIONS)


def check_trainable(module: "torch.nn.Module", config: dict[str, Any]) -> None:
    """Return if DeepSpeed can train a network that is built whole, or without values.

    Raises:
        PreflightError: it cannot; the message names each parameter or module, and the remedy.
    """
    if problems := list(dict.fromkeys(_problems(module, config))):
        more = f"\n  and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
        raise PreflightError(
            f"DeepSpeed cannot train {type(module).__name__}:\n  " + "\n  ".join(problems[:_MOST]) + more,
            code="network_untrainable",
        )


def check_shardable(module: "torch.nn.Module") -> None:
    """Return if a network can be built in shards: its modules keep their parameters as they were made.

    Raises:
        PreflightError: a module computes its weights from parameters.
    """
    from torch.nn.utils import parametrize
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    for name, part in module.named_modules():
        if parametrize.is_parametrized(part) or any(
            isinstance(hook, WeightNorm | SpectralNorm) for hook in part._forward_pre_hooks.values()
        ):
            raise PreflightError(
                f"{name}: its weight is computed from other parameters (torch.nn.utils.parametrize, weight_norm or "
                "spectral_norm), which cannot be built in shards, as ZeRO 3 needs for a network of this size; use "
                "stage 2 or lower.",
                code="zero_3_unsupported",
            )


def _problems(module: "torch.nn.Module", config: dict[str, Any]) -> Iterator[str]:
    import torch

    if lazy := [name for name, value in _tensors(module) if torch.nn.parameter.is_lazy(value)]:
        yield f"{', '.join(lazy)}: not initialised. Give the sizes, for example nn.Linear in place of nn.LazyLinear."
        return  # a lazy tensor has no shape
    yield from _of_parameters(module, zero_stage(config))
    yield from _of_embeddings(module, updates_copies(config))
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            yield f"{name}: get_extra_state returns a {kind}, which a version cannot hold. Keep it in buffers."


def _of_parameters(module: "torch.nn.Module", stage: int) -> Iterator[str]:
    import torch

    dtypes: dict[Any, str] = {}
    for name, parameter in module.named_parameters():
        if not parameter.dim():
            yield f"{name}: a scalar. Give it one dimension, as torch.zeros(1) has."
        if stage == 3 and not parameter.numel():
            yield f"{name}: it holds no value, which ZeRO 3 does not take. Remove it, or use stage 2 or lower."
        if parameter.requires_grad:
            dtype = parameter.dtype
            if parameter.is_complex() or (dtype == torch.float64 and stage in (0, 3)):
                yield f"{name}: {_named(dtype)}. Trained parameters must be float32; hold a complex one as two."
            else:
                dtypes.setdefault(dtype, f"{name} is {_named(dtype)}")
    if len(dtypes) > 1:
        yield f"{', '.join(dtypes.values())}: trained parameters must have one dtype. Build all in float32."


def _of_embeddings(module: "torch.nn.Module", copies: bool) -> Iterator[str]:
    import torch

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag):
            if part.sparse:
                yield f"{name}: its gradients are sparse. Write sparse=False."
            if part.max_norm is not None and copies:
                yield f"{name}: max_norm changes the weights in the forward pass, {LOST}."


def _tensors(module: "torch.nn.Module") -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _named(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
