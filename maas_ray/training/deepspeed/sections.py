"""Sections of the DeepSpeed document: those that must be objects, cannot be used here, or have no effect."""

from collections.abc import Collection
from typing import Any

from maas_ray.errors import Problem
from maas_ray.training.deepspeed.batch import BATCH_FIELDS
from maas_ray.training.deepspeed.document import AUTO, FieldPath, value_at

_OBJECTS: tuple[FieldPath, ...] = (
    *(("optimizer",), ("optimizer", "params"), ("scheduler",), ("scheduler", "params"), ("zero_optimization",)),
    *(("bf16",), ("fp16",), ("amp",), ("torch_autocast",), ("data_types",), ("aio",), ("checkpoint",), ("elasticity",)),
    *(("activation_checkpointing",), ("flops_profiler",), ("comms_logger",), ("tensorboard",), ("csv_monitor",)),
    *(("wandb",), ("comet",), ("data_efficiency",), ("curriculum_learning",), ("progressive_layer_drop",)),
    *(("tensor_parallel",), ("autotuning",), ("hybrid_engine",), ("eigenvalue",)),
)
_TYPED = ("optimizer", "scheduler")
_FLAGS: tuple[FieldPath, ...] = (("bf16", "enabled"), ("fp16", "enabled"), ("torch_autocast", "enabled"))

# The plan gives each worker rows of its own, so workers cannot share rows, layers or experts.
_WORKERS_APART = "each worker has rows of its own here"
_NEEDS_OTHER_CODE = "it passes arguments to the network that networks here do not take"
_UNUSABLE: dict[FieldPath, tuple[Any, str]] = {
    ("tensor_parallel", "autotp_size"): (1, _WORKERS_APART),
    ("sequence_parallel_size",): (1, _WORKERS_APART),
    ("data_parallel_size",): (None, "the number of workers is `workers`"),
    ("expert_parallel", "autoep_size"): (1, _WORKERS_APART),
    ("curriculum_learning", "enabled"): (False, _NEEDS_OTHER_CODE),
    ("progressive_layer_drop", "enabled"): (False, _NEEDS_OTHER_CODE),
    ("hybrid_engine", "enabled"): (False, "it generates while it trains, which needs code of its own"),
    ("zero_optimization", "legacy_stage1"): (False, "DeepSpeed has removed it"),
    ("checkpoint", "writer"): (None, "this platform writes the checkpoints"),
    ("amp", "enabled"): (False, "it needs NVIDIA's apex; use bf16 or fp16"),
}
"""Field: the largest value that changes nothing, and the reason why others cannot be used."""

NO_EFFECT: dict[str, str] = {
    "activation_checkpointing": (
        "it is for networks that call DeepSpeed's own checkpoint function. For Transformers' networks, set "
        "`gradient_checkpointing: true` under `network`"
    ),
    "data_efficiency": "it is for DeepSpeed's own data loader; rows come from the prepared dataset",
    "dataloader_drop_last": "it is for DeepSpeed's own data loader; rows come from the prepared dataset",
    "autotuning": "it is for DeepSpeed's launcher",
    "pipeline": "it is for networks in DeepSpeed's own pipeline form",
}


def problems_of(document: dict[str, Any]) -> list[Problem]:
    """Mistakes that are known without DeepSpeed."""
    found = [*_not_objects(document)]
    return found or [*_untyped(document), *_of_another_type(document), *_unusable(document)]


def without_effect(document: dict[str, Any], unread: Collection[str] = ()) -> list[str]:
    """A line for each field or section of a document that changes nothing here.

    Args:
        document: the user's.
        unread: names that DeepSpeed does not look for. Those that begin with `_` are comments.
    """
    unknown = {name: "DeepSpeed does not have this field" for name in unread if not name.startswith("_")}
    lines = unknown | NO_EFFECT
    return [f"deepspeed.{name} has no effect here: {lines[name]}." for name in document if name in lines]


def _not_objects(document: dict[str, Any]) -> list[Problem]:
    problems = []
    for path in _OBJECTS:
        *outer, name = path
        around = value_at(document, tuple(outer)) if outer else document
        if isinstance(around, dict) and name in around and not isinstance(around[name], dict):
            text = f"deepspeed.{'.'.join(path)} is {around[name]!r}; write an object, or remove it"
            hint = ', such as {"stage": 1}' if name == "zero_optimization" else ""
            problems.append(Problem(f"{text}{hint}.", "not_an_object"))
    return problems


def _untyped(document: dict[str, Any]) -> list[Problem]:
    return [
        Problem(f"deepspeed.{name} lacks `type`, without which DeepSpeed ignores it.", "missing_field")
        for name in _TYPED
        if name in document and not isinstance(document[name].get("type"), str)
    ]


def _of_another_type(document: dict[str, Any]) -> list[Problem]:
    """Values that are read here before DeepSpeed reads them, and numbers that are written as text."""
    problems = []
    for name in BATCH_FIELDS:
        value = document.get(name)
        if value not in (None, AUTO) and (type(value) is not int or value < 1):
            problems.append(_mistyped((name,), value, 'a whole number above 0, or "auto"'))
    for path in _FLAGS:
        value = value_at(document, path)
        if value not in (None, AUTO) and not isinstance(value, bool):
            problems.append(_mistyped(path, value, "true or false"))
    stage = value_at(document, ("zero_optimization", "stage"))
    if stage not in (None, AUTO) and (type(stage) is not int or stage not in range(4)):
        problems.append(_mistyped(("zero_optimization", "stage"), stage, "0, 1, 2 or 3"))
    for name in _TYPED:
        for key, value in (value_at(document, (name, "params")) or {}).items():
            if isinstance(value, str) and _spells_a_number(value):
                problems.append(_mistyped((name, "params", key), value, "a number, without quotes"))
    return problems


def _mistyped(path: FieldPath, value: Any, expected: str) -> Problem:
    return Problem(f"deepspeed.{'.'.join(path)} is {value!r}; write {expected}.", "deepspeed_refused")


def _spells_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unusable(document: dict[str, Any]) -> list[Problem]:
    problems = []
    for path, (harmless, why) in _UNUSABLE.items():
        value = value_at(document, path)
        if value in (None, AUTO, harmless) or (isinstance(harmless, int) and value == 0):
            continue
        text = f"deepspeed.{'.'.join(path)} is {value!r}, which cannot be used here: {why}. Remove it."
        problems.append(Problem(text, "deepspeed_unsupported"))
    return problems
