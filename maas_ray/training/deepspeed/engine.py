"""DeepSpeed's engine around a network, and the two quirks of its fp16 without ZeRO."""

from typing import Any

from maas_ray.tasks import NetworkSpec, Task
from maas_ray.training.deepspeed.build import load_communication
from maas_ray.training.deepspeed.document import zero_stage
from maas_ray.training.deepspeed.untrained import Untrained
from maas_ray.training.deepspeed.zero3 import build_sharded


def build_engine(
    network: NetworkSpec, task: Task, config: dict[str, Any], *, seed: int, rank: int, on_cpu: bool
) -> Any:
    """Build the network and DeepSpeed's engine around it. All workers call it together.

    The initial weights are the same on every rank; dropout differs.

    Returns:
        DeepSpeed's engine, whose `untrained` are the parameters that are not trained.

    Raises:
        TrainingError: there is nothing to train.
    """
    import deepspeed
    import torch

    if on_cpu:
        load_communication()  # otherwise DeepSpeed does, under a lock that a killed process leaves behind
    torch.manual_seed(seed)
    module = build_sharded(network, task, config) if zero_stage(config) == 3 else network.build(task)
    torch.manual_seed(seed + 1 + rank)
    untrained = Untrained.of(task, module)
    engine, _, _, _ = deepspeed.initialize(
        model=module, model_parameters=task.parameters(module), config=config, dist_init_required=False
    )
    untrained.keep(engine, rank)
    engine.untrained = untrained
    return engine


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
