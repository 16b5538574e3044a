"""Defaults of the DeepSpeed configuration: blocks that are added if the user's document does not have them.

The default ZeRO stage and gradient clipping are fields of the spec, see `training/hyperparameters.py`. `"auto"` in a
default is filled like any other `"auto"`, see `resolve`.
"""

import copy
from typing import Any

from maas_ray.training.conflicts import offloads, only_with_cpu_adam
from maas_ray.training.deepspeed.document import AUTO, value_at
from maas_ray.training.deepspeed.fields import ADAM, PARAMETERS, PRECISIONS, SAME
from maas_ray.training.hyperparameters import Hyperparameters

OPTIMIZER = {"type": "AdamW", "params": dict.fromkeys(ADAM, AUTO)}
SCHEDULER = {
    "type": "WarmupCosineLR",
    "params": {"total_num_steps": AUTO, "warmup_num_steps": AUTO, "warmup_type": "linear", "cos_min_ratio": 0.1},
}
SETTINGS = {
    "gradient_clipping": AUTO,
    "steps_per_print": 1 << 30,  # this platform reports; DeepSpeed need not print
    "wall_clock_breakdown": False,
}
WARMUP_PERCENT = 3
"""Steps of warm-up, in percent of all steps, if `warmup_steps` is not set."""


def with_defaults(spec: Hyperparameters, *, on_cpu: bool) -> dict[str, Any]:
    """A copy of the spec's document with every default added."""
    config = copy.deepcopy(spec.deepspeed)
    for name, block in {"optimizer": OPTIMIZER, "scheduler": SCHEDULER, **SETTINGS}.items():
        config.setdefault(name, copy.deepcopy(block))
    number_format = precision(spec)
    if number_format in PRECISIONS:
        config.setdefault(number_format, {}).setdefault("enabled", True)
    _add_parameters(config, spec)
    _choose_adam(config, on_cpu=on_cpu)
    return config


def _choose_adam(config: dict[str, Any], *, on_cpu: bool) -> None:
    """Use Torch's own Adam unless the document says otherwise.

    DeepSpeed would compile one at the start of every fresh machine: for most of a minute on CPUs, and on GPUs with a
    CUDA toolkit of Torch's very version, which Torch's packages do not bring.
    """
    optimizer, zero = config["optimizer"], config.get("zero_optimization", {})
    if str(optimizer.get("type")).lower() not in ("adam", "adamw") or "torch_adam" in optimizer["params"]:
        return
    if zero.get("zenflow") or (not on_cpu and (zero.get("offload_optimizer") or zero.get("cpu_offload"))):
        return  # ZenFlow has an Adam of its own, and offloading needs DeepSpeed's to be fast
    if offloads(config) and only_with_cpu_adam(config):
        return
    if optimizer["params"].get("bias_correction") is False:
        return  # Torch's always corrects
    optimizer["params"].pop("bias_correction", None)
    optimizer["params"]["torch_adam"] = True
    if not on_cpu:
        optimizer["params"].setdefault("fused", True)


def precision(spec: Hyperparameters) -> str:
    """The number format of the passes: `bf16`, `fp16` or `fp32`. The document takes precedence over our default."""
    written = {name: value_at(spec.deepspeed, (name, "enabled")) for name in PRECISIONS}
    for name, enabled in written.items():
        if enabled is True:
            return name
    if "precision" in spec.model_fields_set or AUTO in written.values():
        return "fp32" if written.get(spec.precision) is False else spec.precision
    if False in written.values() or value_at(spec.deepspeed, ("torch_autocast", "enabled")) is True:
        return "fp32"
    return spec.precision


def _add_parameters(config: dict[str, Any], spec: Hyperparameters) -> None:
    """Add parameters that the spec sets and the document's optimizer or scheduler leaves out.

    DeepSpeed would use defaults of its own for them.
    """
    written = {path[-1] for path, field in SAME.items() if field in spec.model_fields_set} | {"total_num_steps"}
    for block, kinds in PARAMETERS.items():
        params = config[block].setdefault("params", {})
        for key in kinds.get(str(config[block].get("type")).lower(), ()):
            if key in written:
                params.setdefault(key, AUTO)
