"""DeepSpeed's engine around a network, and the quirks of its engine without ZeRO."""

import functools
import math
from collections.abc import Iterable
from typing import Any

from maas_ray.errors import TrainingError
from maas_ray.tasks import NetworkSpec, Task
from maas_ray.training.collectives import barrier
from maas_ray.training.deepspeed.build import load_communication
from maas_ray.training.deepspeed.document import zero_stage
from maas_ray.training.deepspeed.groups import optimizer_groups
from maas_ray.training.deepspeed.untrained import Untrained, own_values
from maas_ray.training.deepspeed.zero3 import build_sharded, check_leaves
from maas_ray.training.trainable import check_trainable

_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError)


def build_engine(
    network: NetworkSpec,
    task: Task,
    config: dict[str, Any],
    *,
    seed: int,
    rank: int,
    on_cpu: bool,
    spare: bool = True,
) -> Any:
    """Build the network and DeepSpeed's engine around it. All workers call it together.

    The initial weights are the same on every rank; dropout differs.

    Args:
        network: the network's spec.
        task: the fitted task.
        config: DeepSpeed's resolved configuration.
        seed: seeds the initial weights and dropout.
        rank: this worker's.
        on_cpu: True if it computes on the CPU.
        spare: see `optimizer_groups`; a checkpoint's state fits only the groups that it was made with.

    Returns:
        DeepSpeed's engine, whose `untrained` are the parameters that are not trained.

    Raises:
        PreflightError: there is nothing to train, or DeepSpeed cannot train it.
        TrainingError: DeepSpeed refuses the configuration or the network.
    """
    import deepspeed
    import torch

    if on_cpu:
        load_communication()  # otherwise DeepSpeed does, under a lock that a killed process leaves behind
    torch.manual_seed(seed)
    if zero_stage(config) == 3:
        module = build_sharded(network, task, config)
    else:
        module = network.build(task)
        check_trainable(module, config)
        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # DeepSpeed sends its bytes
    torch.manual_seed(seed + 1 + rank)
    groups = optimizer_groups(task, module, spare=spare)
    untrained = Untrained.of(module, groups)
    barrier()  # each rank has read the weights by itself
    try:
        engine, _, _, _ = deepspeed.initialize(
            model=module, model_parameters=groups, config=config, dist_init_required=False
        )
    except _REFUSALS as error:
        raise TrainingError(
            f"DeepSpeed cannot train this network with this configuration: {str(error).strip() or repr(error)}",
            code="deepspeed_refused",
        ) from error
    if zero_stage(config) == 3:
        check_leaves(engine.module)
    untrained.keep(engine, rank)
    engine.untrained = untrained
    _leave_out_bad_steps(engine)
    return engine


def _leave_out_bad_steps(engine: Any) -> None:
    """Make an optimizer that DeepSpeed does not wrap leave out steps whose gradients are not finite, and say so.

    DeepSpeed's own optimizers do so, and say it by `overflow`, which the engine reads. In fp32 without ZeRO the engine
    steps Torch's optimizer directly, and all weights would become NaN.
    """
    optimizer, scaler = engine.optimizer, _scaler(engine)
    if hasattr(optimizer, "overflow"):
        return
    step = optimizer.step

    @functools.wraps(step)
    def guarded(*arguments: Any, **options: Any) -> Any:
        # The same on every rank, because gradients are reduced.
        optimizer.overflow = not _finite(p.grad for group in optimizer.param_groups for p in group["params"])
        return None if optimizer.overflow else step(*arguments, **options)

    optimizer.step, optimizer.overflow = guarded, False
    if scaler is None:
        return
    step_if_finite = scaler.step

    def scaled(*arguments: Any) -> Any:
        optimizer.overflow = True  # until `guarded` is called, which the scaler may not do
        return step_if_finite(*arguments)

    scaler.step = scaled


def dynamic_loss_scale(engine: Any) -> float | None:
    """The loss scale, if DeepSpeed lowers it when gradients do not fit in fp16. None: it does not."""
    if (scaler := _scaler(engine)) is not None:
        return float(scaler.get_scale())
    dynamic = engine.fp16_enabled() and engine.dynamic_loss_scale()
    return float(engine.optimizer.loss_scale) if dynamic else None


def _scaler(engine: Any) -> Any:
    """Torch's gradient scaler, which DeepSpeed uses for `torch_autocast` in fp16.

    With ZeRO, DeepSpeed never lowers its scale, so that another try would be in vain.
    """
    return getattr(engine, "torch_autocast_z0_gradscaler", None)


def weights_are_finite(engine: Any) -> bool:
    """True if every trained weight that this rank holds is finite."""
    names = set(engine.untrained.trained)
    return _finite(own_values(parameter) for name, parameter in engine.module.named_parameters() if name in names)


def _finite(tensors: Iterable[Any]) -> bool:
    import torch

    held = [tensor for tensor in tensors if tensor is not None and tensor.numel()]
    return math.isfinite(torch.nn.utils.get_total_norm(held, math.inf))


def missing_loss_scale(engine: Any) -> float:
    """The factor that a loss must be multiplied by because DeepSpeed divides gradients by it but omits to multiply.

    This is so in fp16 without ZeRO (DeepSpeed's pull request 8393): without the factor such a run learns nothing.
    """
    unscaled = engine.fp16_enabled() and not engine.zero_optimization()
    return float(engine.optimizer.loss_scale) if unscaled else 1.0


def gradient_norm(engine: Any) -> float | None:
    """Global gradient norm of the last step, before clipping."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    norm = engine.get_global_grad_norm()
    # Unlike DeepSpeed's other optimizers, this one reports the norm multiplied by the loss scale.
    scaled = isinstance(engine.optimizer, FP16_UnfusedOptimizer)
    return None if norm is None else float(norm) / (engine.optimizer.loss_scale if scaled else 1.0)
