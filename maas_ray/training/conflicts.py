"""Values of a document that DeepSpeed reads and refuses later: when its engine is built, or in the first pass.

Each function names the code of DeepSpeed 0.19 that it speaks for.
"""

from collections.abc import Iterator
from typing import Any

from maas_ray.errors import Problem
from maas_ray.training.deepspeed.document import FieldPath, value_at, zero_stage
from maas_ray.training.deepspeed.fields import PRECISIONS

_ZERO = "zero_optimization"
_OFFLOAD = (_ZERO, "offload_optimizer")
_COMPILED = {"lamb": "FusedLambBuilder", "lion": "FusedLionBuilder"}
"""Optimizer: what compiles it, unless its state is offloaded."""
_QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")


def problems_of(config: dict[str, Any]) -> list[Problem]:
    """Conflicts on every device.

    Args:
        config: the resolved configuration, which DeepSpeed can read.
    """
    found = (_formats, _scaled_gradients, _without_norm, _muon, _lamb, _zenflow, _cpu_adam)
    return [problem for check in found for problem in check(config)]


def problems_on_cpu(config: dict[str, Any]) -> list[Problem]:
    """Conflicts with workers that have no GPU."""
    return [*_compiled_for_gpus(config), *_super_offload(config)]


def offloads(config: dict[str, Any]) -> bool:
    """True if the optimizer's state is in the memory of the host."""
    device = value_at(config, (*_OFFLOAD, "device"))
    return device in ("cpu", "nvme") or bool(value_at(config, (_ZERO, "cpu_offload")))


def only_with_cpu_adam(config: dict[str, Any]) -> list[FieldPath]:
    """Fields that DeepSpeed takes only with its own Adam for CPUs, which it uses if the optimizer's state is offloaded.

    `BaseOptimizer._configure_master_weights`; "Hybrid Optimizer" in `DeepSpeedZeroOptimizer_Stage3.__init__`.
    """
    fields: list[FieldPath] = []
    for name in PRECISIONS:
        field = (name, f"{name}_master_weights_and_grads")
        # Under ZeRO, states in bf16 may stay on the device, with any optimizer.
        free = name == "bf16" and value_at(config, (name, "bf16_optimizer_states")) and not offloads(config)
        if value_at(config, (name, "enabled")) is True and value_at(config, field) and not free:
            fields.append(field)
    ratio = value_at(config, (*_OFFLOAD, "ratio"))
    if zero_stage(config) == 3 and offloads(config) and isinstance(ratio, int | float) and ratio < 1:
        fields.append((*_OFFLOAD, "ratio"))
    return fields


def _formats(config: dict[str, Any]) -> Iterator[Problem]:
    """`DeepSpeedEngine._assert_valid_mixed_precision_config` and `._do_optimizer_sanity_check`."""
    from deepspeed.runtime.config import DtypeEnum

    ours = next((name for name in PRECISIONS if value_at(config, (name, "enabled")) is True), "fp32")
    for name in ("param_dtype", *(() if zero_stage(config) else ("grad_accum_dtype",))):
        value = value_at(config, ("data_types", name))
        if value is None:
            continue
        try:
            agrees = DtypeEnum(value).name == ours
        except ValueError:
            agrees = False
        if not agrees:
            where = " without ZeRO" if name == "grad_accum_dtype" else ""
            remedy = f"Write {ours!r}, or remove it"
            if where:
                remedy = f"Write {ours!r} or zero_optimization.stage 1, or remove it"
            yield _problem(config, ("data_types", name), f"but{where} it must be that of the passes, {ours}", remedy)


def _scaled_gradients(config: dict[str, Any]) -> Iterator[Problem]:
    """The checks below `if self.reduce_scatter` in the optimizers of ZeRO 2 and 3."""
    stage = zero_stage(config)
    summed = stage == 2 and value_at(config, ("gradient_allreduce_op",)) == "sum"
    if stage < 2 or summed or value_at(config, (_ZERO, "reduce_scatter")) is False:
        return
    for name, neutral in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0)):
        if value_at(config, (name,)) not in (None, neutral):
            reason = f"which ZeRO {stage} does not take together with reduce_scatter"
            yield _problem(config, (name,), reason, "Remove it, or write zero_optimization.reduce_scatter: false")


def _without_norm(config: dict[str, Any]) -> Iterator[Problem]:
    """`compute_grad_norm` in `DeepSpeedZeroOptimizer.__init__` and `DeepSpeedEngine._do_optimizer_sanity_check`."""
    field = (_ZERO, "compute_grad_norm")
    if value_at(config, field) is not False:
        return
    if config.get("gradient_clipping"):
        clipping = config["gradient_clipping"]
        yield _problem(config, field, f"but gradient_clipping {clipping} needs the norm", "Remove one of them")
    if offloads(config) or value_at(config, (_ZERO, "zenflow")):
        yield _problem(config, field, "which does not work with an offloaded optimizer", "Remove it")


def _muon(config: dict[str, Any]) -> Iterator[Problem]:
    """`use_muon` in `DeepSpeedZeroOptimizer_Stage3.__init__`."""
    scatters = value_at(config, (_ZERO, "reduce_scatter")) is not False
    if _optimizer(config) == "muon" and zero_stage(config) == 3 and scatters:
        reason = "which ZeRO 3 does not take together with reduce_scatter"
        yield _problem(config, ("optimizer", "type"), reason, "Write zero_optimization.reduce_scatter: false")


def _lamb(config: dict[str, Any]) -> Iterator[Problem]:
    """`DeepSpeedEngine._do_sanity_check`."""
    field = ("fp16", "loss_scale")
    if _optimizer(config) == "lamb" and value_at(config, field):
        yield _problem(config, field, "but Lamb needs a loss scale that DeepSpeed adapts", "Write 0, or remove it")


def _zenflow(config: dict[str, Any]) -> Iterator[Problem]:
    """`ZenFlowZeroOptimizer._configure_zenflow`, `is_zenflow_update_boundary`.

    ZeRO 3 gives ZenFlow transposed weights, with which layers then compute.
    """
    field, stage = (_ZERO, "zenflow"), zero_stage(config)
    if not isinstance(value_at(config, field), dict) or not stage:
        return
    if not offloads(config):
        yield _problem(config, field, "which needs an offloaded optimizer", f"Write {'.'.join(_OFFLOAD)}.device: cpu")
    if stage == 3:
        yield _problem(config, field, "which fails in the first pass under ZeRO 3", "Write stage 1 or 2, or remove it")
    if not isinstance(value_at(config, (*field, "update_interval")), int):
        reason = "with which DeepSpeed chooses the steps that train; here every step does"
        yield _problem(config, (*field, "update_interval"), reason, "Write a whole number above 0")


def _cpu_adam(config: dict[str, Any]) -> Iterator[Problem]:
    adam = _optimizer(config) in ("adam", "adamw") and not value_at(config, ("optimizer", "params", "torch_adam"))
    if offloads(config) and adam and value_at(config, (_ZERO, "zenflow")) is None:
        return
    for field in only_with_cpu_adam(config):
        reason = "which DeepSpeed takes only with its own Adam on an offloaded state"
        remedy = f"Write {'.'.join(_OFFLOAD)}.device: cpu, with optimizer AdamW without torch_adam, or remove it"
        yield _problem(config, field, reason, remedy)


def _compiled_for_gpus(config: dict[str, Any]) -> Iterator[Problem]:
    """`CPU_Accelerator.get_op_builder` gives `NotImplementedBuilder` for what this package lacks."""
    from deepspeed.ops.op_builder import cpu

    name = _optimizer(config)
    if name in _COMPILED and not hasattr(cpu, _COMPILED[name]) and not (name == "lion" and offloads(config)):
        remedy = "Use AdamW, or GPUs"
        yield _problem(config, ("optimizer", "type"), "which DeepSpeed has for GPUs alone", remedy)
    for key in _QUANTIZED:
        if zero_stage(config) == 3 and value_at(config, (_ZERO, key)) and not hasattr(cpu, "QuantizerBuilder"):
            yield _problem(config, (_ZERO, key), "but DeepSpeed quantizes on GPUs alone", "Remove it, or use GPUs")


def _super_offload(config: dict[str, Any]) -> Iterator[Problem]:
    """`SuperOffloadOptimizer_Stage3.__init__`."""
    field = (*_OFFLOAD, "super_offload")
    if zero_stage(config) == 3 and value_at(config, field):
        yield _problem(config, field, "which DeepSpeed has for NVIDIA's GPUs alone", "Remove it, or use GPUs")


def _optimizer(config: dict[str, Any]) -> str:
    return str(value_at(config, ("optimizer", "type"))).lower()


def _problem(config: dict[str, Any], field: FieldPath, reason: str, remedy: str) -> Problem:
    text = f"deepspeed.{'.'.join(field)} is {value_at(config, field)!r}, {reason}. {remedy}."
    return Problem(text, "deepspeed_refused")
