"""A trial of the optimizer and the scheduler of a configuration, on one number, in this process."""

import inspect
from typing import Any

from maas_ray.errors import Problem

_ERRORS = (TypeError, ValueError, AssertionError, KeyError, AttributeError, ArithmeticError)
_OF_DEEPSPEED = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")
"""Parameters that DeepSpeed reads itself."""


def problems_of(config: dict[str, Any]) -> list[Problem]:
    """Mistakes that DeepSpeed would refuse as soon as its engine is built.

    Args:
        config: the resolved configuration.
    """
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    problems = []
    try:
        optimizer = _optimizer(config) or optimizer
    except _ERRORS as error:
        problems.append(_problem("optimizer", config, error))
    try:
        _scheduler(config, optimizer)
    except _ERRORS as error:
        problems.append(_problem("scheduler", config, error))
    return problems


def _optimizer(config: dict[str, Any]) -> Any:
    """The optimizer as DeepSpeed makes it (`DeepSpeedEngine._configure_basic_optimizer`). None: it must be compiled."""
    import torch
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    name, params = config["optimizer"]["type"], dict(config["optimizer"].get("params", {}))
    if "max_grad_norm" in params:
        raise ValueError("max_grad_norm is not a parameter of an optimizer; write gradient_clipping")
    own = {key: params.pop(key) for key in _OF_DEEPSPEED if key in params}
    if name.lower() in ("adam", "adamw"):
        if not own.get("torch_adam"):
            _check_compiled(params, config)
            return None
        kind: Any = torch.optim.AdamW if name.lower() == "adamw" or own.get("adam_w_mode", True) else torch.optim.Adam
        params.pop("fused", None)  # it looks at the device
    elif name.lower() == "adagrad":
        kind = torch.optim.Adagrad
    elif name.lower() in DEEPSPEED_OPTIMIZERS:
        return None
    else:
        kind = getattr(torch.optim, name)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **params)
    untested = config.get("zero_optimization", {}).get("stage") and type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS
    if untested and not config.get("zero_allow_untested_optimizer"):
        raise ValueError('DeepSpeed has not tested it with ZeRO; write "zero_allow_untested_optimizer": true to use it')
    return optimizer


def _check_compiled(params: dict[str, Any], config: dict[str, Any]) -> None:
    """Check the names of the parameters of an Adam that is compiled when it is made."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam, ZenFlowCPUAdam

    zero = config.get("zero_optimization", {})
    offloaded = (zero.get("offload_optimizer") or {}).get("device") in ("cpu", "nvme") or zero.get("cpu_offload")
    kind = (ZenFlowCPUAdam if zero.get("zenflow") else DeepSpeedCPUAdam) if offloaded else FusedAdam
    inspect.signature(kind.__init__).bind(None, [], **params)


def _scheduler(config: dict[str, Any], optimizer: Any) -> None:
    import torch
    from deepspeed.runtime import lr_schedules

    name = config["scheduler"]["type"]
    kind = getattr(lr_schedules, name, None) or getattr(torch.optim.lr_scheduler, name)
    kind(optimizer, **config["scheduler"].get("params", {}))


def _problem(block: str, config: dict[str, Any], error: Exception) -> Problem:
    name = config[block]["type"]
    return Problem(f"deepspeed.{block}, {name!r}: {str(error).strip() or repr(error)}.", "deepspeed_refused")
