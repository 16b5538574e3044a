"""The DeepSpeed configuration as a worker runs it: the user's document, defaults added, every `"auto"` filled.

`fields` lists the fields that mean the same as one of the spec, `defaults` all that is added.
"""

from typing import Any

from maas_ray.errors import InvalidError
from maas_ray.training.deepspeed.batch import BATCH_FIELDS, batch_geometry
from maas_ray.training.deepspeed.defaults import WARMUP_PERCENT, precision, with_defaults
from maas_ray.training.deepspeed.document import AUTO, FieldPath
from maas_ray.training.deepspeed.fields import SAME
from maas_ray.training.hyperparameters import Hyperparameters

_IMPLEMENTATION = ("torch_adam", "fused")


def resolve(
    spec: Hyperparameters, *, workers: int, total_steps: int, hidden_size: int | None, on_cpu: bool
) -> dict[str, Any]:
    """The configuration as DeepSpeed gets it.

    Args:
        spec: the run's hyperparameters, with the user's document.
        workers: number of workers.
        total_steps: optimizer steps in the whole run, for schedulers.
        hidden_size: width of the network, for ZeRO's buffer sizes. None: unknown.
        on_cpu: True if the workers have no GPU.

    Raises:
        InvalidError: a field of the document is `"auto"`, and no field of the spec fills it.
    """
    config = with_defaults(spec, on_cpu=on_cpu)
    values = _from_spec(spec, workers, total_steps) | _from_network(hidden_size)
    for name in BATCH_FIELDS:
        config[name] = values[name,]
    _fill(config, values, ())
    return config


def as_before(config: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the implementation of Adam that a checkpoint was made with, whose state it holds."""
    ours, theirs = config["optimizer"], before.get("optimizer", {})
    if ours["type"] != theirs.get("type"):
        return config
    params = {key: value for key, value in ours["params"].items() if key not in _IMPLEMENTATION}
    params |= {key: value for key, value in theirs.get("params", {}).items() if key in _IMPLEMENTATION}
    return config | {"optimizer": ours | {"params": params}}


def _from_spec(spec: Hyperparameters, workers: int, total_steps: int) -> dict[FieldPath, Any]:
    """Values of `"auto"` fields that follow from the spec."""
    geometry, number_format = batch_geometry(spec, workers), precision(spec)
    warmup_steps = total_steps * WARMUP_PERCENT // 100 if spec.warmup_steps is None else spec.warmup_steps
    return {
        **{path: getattr(spec, field) for path, field in SAME.items()},
        # DeepSpeed counts whole passes; if rows do not divide evenly, a pass or a worker has fewer.
        ("train_batch_size",): geometry.micro_batch * geometry.passes * workers,
        ("train_micro_batch_size_per_gpu",): geometry.micro_batch,
        ("gradient_accumulation_steps",): geometry.passes,
        ("optimizer", "params", "betas"): list(spec.betas),
        ("scheduler", "params", "warmup_min_lr"): 0.0,
        ("scheduler", "params", "warmup_num_steps"): max(1, warmup_steps),  # DeepSpeed refuses 0
        ("scheduler", "params", "total_num_steps"): total_steps,
        ("scheduler", "params", "total_steps"): total_steps,
        ("bf16", "enabled"): number_format == "bf16",
        ("fp16", "enabled"): number_format == "fp16",
        # The export gathers the fp32 weights in any case.
        ("zero_optimization", "stage3_gather_16bit_weights_on_model_save"): True,
    }


def _from_network(hidden_size: int | None) -> dict[FieldPath, Any]:
    """ZeRO's buffer sizes as Transformers' own integration fills them. Without a width, DeepSpeed's defaults apply."""
    return {
        ("zero_optimization", "reduce_bucket_size"): hidden_size and hidden_size**2,
        ("zero_optimization", "stage3_prefetch_bucket_size"): hidden_size and int(0.9 * hidden_size**2),
        ("zero_optimization", "stage3_param_persistence_threshold"): hidden_size and 10 * hidden_size,
    }


def _fill(config: dict[str, Any], values: dict[FieldPath, Any], prefix: FieldPath) -> None:
    """Replace every `"auto"`; a field whose value is None is removed."""
    for key, value in list(config.items()):
        path = (*prefix, key)
        if isinstance(value, dict):
            _fill(value, values, path)
        elif value == AUTO:
            if path not in values:
                raise InvalidError(
                    "auto_unfilled",
                    f'deepspeed.{".".join(path)} is "auto", but no field of the spec fills it. Write a value, or '
                    "remove it.",
                )
            if values[path] is None:
                del config[key]
            else:
                config[key] = values[path]
