"""The user's DeepSpeed configuration: passed through whole, `"auto"` filled, contradictions refused.

The table below says which of DeepSpeed's fields mean the same as one of ours. A field that holds `"auto"`
takes the spec's value; one that holds a value must agree with the spec where the spec was written
explicitly, and is used as it stands where it was not.
"""

import copy
import difflib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_ray.errors import SpecError

if TYPE_CHECKING:
    from maas_ray.train.spec import TrainSpec

AUTO = "auto"
Path_ = tuple[str, ...]

_SAME: dict[Path_, str] = {
    ("train_batch_size",): "batch_size",
    ("train_micro_batch_size_per_gpu",): "micro_batch_size",
    ("gradient_clipping",): "gradient_clipping",
    ("optimizer", "params", "lr"): "learning_rate",
    ("optimizer", "params", "weight_decay"): "weight_decay",
    ("optimizer", "params", "betas"): "betas",
    ("optimizer", "params", "eps"): "eps",
    ("scheduler", "params", "warmup_max_lr"): "learning_rate",
    ("scheduler", "params", "warmup_num_steps"): "warmup_steps",
}
_PRECISIONS = ("bf16", "fp16")


def read_document(value: Any) -> Any:
    """A document as it is, or read from the path of a JSON file."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{value!r} cannot be read: {error.strerror}. Give a JSON file or write it inline.") from error
    except ValueError as error:
        raise ValueError(f"{value!r} is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{value!r} holds a {type(document).__name__}; DeepSpeed's configuration is an object.")
    return document


def check_against_spec(spec: "TrainSpec") -> None:
    """Refuse a document that contradicts the spec.

    Raises:
        ValueError: names both fields and both values.
    """
    problems = []
    for path, field in _SAME.items():
        theirs, ours = _get(spec.deepspeed, path), getattr(spec, field)
        if theirs in (None, AUTO) or field not in spec.model_fields_set or ours is None:
            continue
        if (list(ours) if isinstance(ours, tuple) else ours) != theirs:
            problems.append(
                f"{field} is {ours!r}, but deepspeed.{'.'.join(path)} is {theirs!r}. "
                f'Remove one, or write "auto" in the DeepSpeed configuration.'
            )
    for name in _PRECISIONS:
        enabled = _get(spec.deepspeed, (name, "enabled"))
        if isinstance(enabled, bool) and "precision" in spec.model_fields_set and enabled != (spec.precision == name):
            problems.append(
                f"precision is {spec.precision!r}, but deepspeed.{name}.enabled is {str(enabled).lower()}. Remove one."
            )
    if problems:
        raise ValueError("\n  ".join(problems))
    _check_batch(spec)


def _check_batch(spec: "TrainSpec") -> None:
    """What is written of a step's rows must agree, at the largest number of workers."""
    workers = spec.most_workers
    batch, micro, _ = batch_geometry(spec, workers)
    if batch < workers:
        raise ValueError(f"batch_size: {batch} rows a step are too few for {workers} workers; each needs one.")
    passes = _theirs(spec)["gradient_accumulation_steps"]
    if passes and (micro * passes * workers) != batch:
        raise ValueError(
            f"{batch} rows a step do not divide evenly: batch_size (train_batch_size) is {batch}, and {workers} "
            f"workers × {micro} rows a pass (micro_batch_size) × {passes} passes (gradient_accumulation_steps) make "
            f"{micro * passes * workers}. Leave one of them out."
        )


def batch_geometry(spec: "TrainSpec", workers: int) -> tuple[int, int, int]:
    """Rows a step over all workers, rows a forward pass, and forward passes a step of one worker.

    What the DeepSpeed document gives as numbers counts before the spec's defaults; what is left follows. The rows
    of a step are the same for any number of workers: fewer workers make more passes. Where they do not come out
    even, some passes have fewer rows, and weigh less.
    """
    theirs = _theirs(spec)
    micro = theirs["train_micro_batch_size_per_gpu"] or spec.micro_batch_size
    accumulation = theirs["gradient_accumulation_steps"]
    batch = theirs["train_batch_size"]
    if batch is None and micro and accumulation and "batch_size" not in spec.model_fields_set:
        batch = micro * accumulation * spec.most_workers
    batch = batch or spec.batch_size
    if micro is None:
        share = -(-batch // spec.most_workers)
        micro = -(-share // accumulation) if accumulation else _default_micro(share)
    return batch, micro, max(1, -(-batch // (workers * micro)))


def _theirs(spec: "TrainSpec") -> dict[str, int | None]:
    """What the DeepSpeed document says in numbers of a step's rows."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {name: None if (value := spec.deepspeed.get(name)) == AUTO else value for name in names}


def _default_micro(share: int) -> int:
    return next(size for size in range(min(8, share), 0, -1) if share % size == 0)


def resolve(
    spec: "TrainSpec", *, workers: int, total_steps: int, hidden_size: int | None, on_cpu: bool
) -> dict[str, Any]:
    """The configuration as DeepSpeed gets it: every `"auto"` filled, what is missing added.

    Args:
        spec: the run's spec.
        workers: how many there are.
        total_steps: optimizer steps in the whole run, for schedulers.
        hidden_size: width of the network, for ZeRO's buffer sizes as Transformers fills them. None: unknown.
        on_cpu: whether the workers have no GPU.
    """
    config = copy.deepcopy(spec.deepspeed)
    _, micro, accumulation = batch_geometry(spec, workers)
    warmup = max(1, total_steps * 3 // 100 if spec.warmup_steps is None else spec.warmup_steps)  # it refuses 0
    config.setdefault(
        "optimizer", {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO)}
    )
    config.setdefault(
        "scheduler",
        {
            "type": "WarmupCosineLR",
            "params": {
                "total_num_steps": AUTO,
                "warmup_num_steps": AUTO,
                "warmup_type": "linear",
                "cos_min_ratio": 0.1,
            },
        },
    )
    if not any(name in config for name in _PRECISIONS) and spec.precision in _PRECISIONS:
        config[spec.precision] = {"enabled": True}
    config.setdefault("gradient_clipping", AUTO)
    values: dict[Path_, Any] = {
        **{path: getattr(spec, field) for path, field in _SAME.items()},
        # As DeepSpeed counts it; where rows do not come out even, a pass or a worker has fewer.
        ("train_batch_size",): micro * accumulation * workers,
        ("train_micro_batch_size_per_gpu",): micro,
        ("gradient_accumulation_steps",): accumulation,
        ("optimizer", "params", "betas"): list(spec.betas),
        ("scheduler", "params", "warmup_min_lr"): 0.0,
        ("scheduler", "params", "warmup_num_steps"): warmup,
        ("scheduler", "params", "total_num_steps"): total_steps,
        ("bf16", "enabled"): spec.precision == "bf16",
        ("fp16", "enabled"): spec.precision == "fp16",
    }
    # As Transformers' own integration fills them; without a width, DeepSpeed's defaults stand.
    values |= {
        ("zero_optimization", "reduce_bucket_size"): hidden_size and hidden_size**2,
        ("zero_optimization", "stage3_prefetch_bucket_size"): hidden_size and int(0.9 * hidden_size**2),
        ("zero_optimization", "stage3_param_persistence_threshold"): hidden_size and 10 * hidden_size,
    }
    for name in _theirs(spec):
        config[name] = values[name,]
    _fill(config, values, ())
    config.setdefault("steps_per_print", 1 << 30)  # this platform reports; DeepSpeed need not print
    config.setdefault("wall_clock_breakdown", False)
    optimizer = config["optimizer"]
    offloads = _get(config, ("zero_optimization", "offload_optimizer", "device")) in ("cpu", "nvme")
    if on_cpu and not offloads and optimizer["type"].lower() in ("adam", "adamw"):
        # Without it DeepSpeed compiles its own CPU Adam at the start of every fresh machine.
        optimizer.setdefault("params", {}).setdefault("torch_adam", True)
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """Which of a worker's state is sharded: 0 none, 1 the optimizer's, 2 gradients too, 3 parameters too."""
    return int(_get(config, ("zero_optimization", "stage")) or 0)


def check_with_deepspeed(config: dict[str, Any]) -> None:
    """Let DeepSpeed itself read a resolved configuration, here rather than in every worker a minute later.

    Raises:
        SpecError: it refuses it, or a key is a misspelt one, which DeepSpeed would pass over in silence.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would warn that it has to guess
    from deepspeed.runtime import constants
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"zero_optimization"}
    problems = []
    for key in sorted(config.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near:
            problems.append(f"deepspeed.{key}: DeepSpeed has no such field; did you mean `{near[0]}`?")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It takes this process for the only worker.
    alone = {"train_batch_size": config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]}
    try:
        DeepSpeedConfig(copy.deepcopy(config) | alone)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            field = ".".join(str(part) for part in detail["loc"])
            problems.append(f"deepspeed: {error.title}.{field}: {detail['msg']} (found {detail['input']!r}).")
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        problems.append(f"deepspeed: {str(error).strip() or repr(error)}")
    if problems:
        raise SpecError("train", problems)


def _fill(config: dict[str, Any], values: dict[Path_, Any], prefix: Path_) -> None:
    for key, value in list(config.items()):
        path = (*prefix, key)
        if isinstance(value, dict):
            _fill(value, values, path)
        elif value == AUTO:
            if path not in values:
                raise ValueError(
                    f'deepspeed.{".".join(path)} is "auto", but no field of the spec fills it; write a value.'
                )
            if values[path] is None:
                del config[key]
            else:
                config[key] = values[path]


def _get(document: dict[str, Any], path: Path_) -> Any:
    value: Any = document
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
