"""A trial of the optimizer and the scheduler of a configuration, on one number, in this process.

The optimizer takes one step, the scheduler those of the run, up to `MOST_STEPS`.
"""

import inspect
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from maas_ray.errors import Problem
from maas_ray.training.conflicts import offloads
from maas_ray.training.deepspeed.schedule import MAX_LEAD
from maas_ray.training.trainable import updates_copies

MOST_STEPS = 1_000
_ERRORS = (TypeError, ValueError, AssertionError, KeyError, AttributeError, ArithmeticError, RuntimeError)
_COMPILED = ("lamb", "lion")
_OF_DEEPSPEED = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")
"""Parameters that DeepSpeed reads itself."""


def problems_of(config: dict[str, Any], steps: int) -> list[Problem]:
    """Mistakes that DeepSpeed would refuse when its engine is built, or in a step.

    Args:
        config: the resolved configuration.
        steps: those of the run.
    """
    import torch

    optimizer = spare = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    problems = []
    try:
        optimizer = _optimizer(config) or spare
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(1)
        optimizer.step()
    except _ERRORS as error:
        problems.append(_problem("optimizer", config, error))
        optimizer = spare
    try:
        _take_steps(_scheduler(config, optimizer), optimizer, steps)
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
    if name.lower() in _COMPILED or (name.lower() in ("adam", "adamw") and not own.get("torch_adam")):
        _check_names(_compiled(name.lower(), config), params)
        return None
    if name.lower() in ("adam", "adamw"):
        kind: Any = torch.optim.AdamW if name.lower() == "adamw" or own.get("adam_w_mode", True) else torch.optim.Adam
        params.pop("fused", None)  # it looks at the device
    elif name.lower() == "adagrad":
        if offloads(config):
            return None
        kind = torch.optim.Adagrad
    elif name.lower() in DEEPSPEED_OPTIMIZERS:
        if name.lower().startswith("mu") and name.lower() != "muon" and find_spec("mup") is None:
            raise ValueError("it needs a package that is not installed: pip install mup")
        return None
    else:
        kind = _class_of(torch.optim, name, DEEPSPEED_OPTIMIZERS)
    _check_names(kind, params)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **params)
    if optimizer.state and updates_copies(config):
        raise ValueError(
            "it makes its state when it is built, for parameters that DeepSpeed replaces by copies under ZeRO and in "
            "16 bits. Use `precision: fp32` and zero_optimization.stage 0, or another optimizer"
        )
    untested = config.get("zero_optimization", {}).get("stage") and type(optimizer) not in ZERO_SUPPORTED_OPTIMIZERS
    if untested and not config.get("zero_allow_untested_optimizer"):
        raise ValueError('DeepSpeed has not tested it with ZeRO; write "zero_allow_untested_optimizer": true to use it')
    return optimizer


def _compiled(name: str, config: dict[str, Any]) -> Any:
    """The class of an optimizer that DeepSpeed compiles when it is made."""
    from deepspeed.ops import adam, lamb, lion

    zero, offloaded = config.get("zero_optimization", {}), offloads(config)
    if name == "lamb":
        return lamb.FusedLamb
    if name == "lion":
        return lion.DeepSpeedCPULion if offloaded else lion.FusedLion
    if not offloaded:
        return adam.FusedAdam
    return adam.ZenFlowCPUAdam if zero.get("zenflow") else adam.DeepSpeedCPUAdam


def _class_of(module: Any, name: str, others: Iterable[str]) -> Any:
    """The class of this name in a module of Torch."""
    kind = getattr(module, name, None)
    if not isinstance(kind, type):
        raise ValueError(
            f"neither DeepSpeed nor {module.__name__} has it. Choose one of {', '.join(others)}, or a class of "
            f"{module.__name__}"
        )
    return kind


def _check_names(kind: Any, params: dict[str, Any]) -> None:
    """Refuse parameters that an optimizer or a scheduler does not have."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[2:]  # without itself and what it works on
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = [parameter.name for parameter in parameters]
    for key, value in params.items():
        if key not in taken:
            raise ValueError(
                f"{key} is {value!r}, but {kind.__name__} does not have this parameter. Remove it; it has "
                f"{', '.join(taken)}"
            )


def _scheduler(config: dict[str, Any], optimizer: Any) -> Any:
    import torch
    from deepspeed.runtime import lr_schedules

    name = config["scheduler"]["type"]
    kind = getattr(lr_schedules, name, None) if name in lr_schedules.VALID_LR_SCHEDULES else None
    if kind is None:
        kind = _class_of(torch.optim.lr_scheduler, name, lr_schedules.VALID_LR_SCHEDULES)
        if updates_copies(config):
            raise ValueError(
                "Torch's schedulers take Torch's optimizers alone, which DeepSpeed wraps under ZeRO and in 16 bits. "
                f"Use {', '.join(lr_schedules.VALID_LR_SCHEDULES)}, or `precision: fp32` and zero_optimization.stage 0"
            )
    params = config["scheduler"].get("params", {})
    _check_names(kind, params)
    return kind(optimizer, **params)


def _take_steps(scheduler: Any, optimizer: Any, steps: int) -> None:
    """Take the run's steps, and refuse a schedule that ends before them.

    Raises:
        ValueError: the learning rate is 0 from some step on.
    """
    rates: list[float] = []
    lead = 0
    optimizer.step()  # Torch's schedulers warn if none was taken since they were made
    while len(rates) < min(steps, MOST_STEPS):
        rate = optimizer.param_groups[0]["lr"]
        if rate or rates or lead == MAX_LEAD:
            rates.append(rate)
        else:
            lead += 1  # a run skips it
        scheduler.step()
    last = max((step for step, rate in enumerate(rates, 1) if rate), default=0)
    if len(rates) - last > 1:
        raise ValueError(f"the learning rate is 0 from step {last + 1:,} on, but the run has {steps:,} steps")


def _problem(block: str, config: dict[str, Any], error: Exception) -> Problem:
    name = config[block]["type"]
    return Problem(f"deepspeed.{block}, {name!r}: {str(error).strip() or repr(error)}.", "deepspeed_refused")
