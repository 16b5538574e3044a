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
    from maas_ray.training.spec import TrainSpec

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
    ("scheduler", "params", "cycle_max_lr"): "learning_rate",
    ("scheduler", "params", "warmup_num_steps"): "warmup_steps",
}
_PRECISIONS = ("bf16", "fp16")
_ADAM = ("lr", "betas", "eps", "weight_decay")
# Which of the table's fields an optimizer or a scheduler has. One that is not here is taken as it is written.
_HAS: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {
        "adam": _ADAM,
        "adamw": _ADAM,
        "lamb": _ADAM,
        "lion": ("lr", "betas", "weight_decay"),
        "adagrad": ("lr", "eps", "weight_decay"),
        "sgd": ("lr", "weight_decay"),
    },
    "scheduler": {
        "warmuplr": ("warmup_max_lr", "warmup_num_steps"),
        "warmupdecaylr": ("warmup_max_lr", "warmup_num_steps", "total_num_steps"),
        "warmupcosinelr": ("warmup_num_steps", "total_num_steps"),
        "onecycle": ("cycle_max_lr",),
        "lrrangetest": (),
    },
}


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
    problems += [
        f"{field} is {getattr(spec, field)!r}, but deepspeed.{block}.type is {spec.deepspeed[block]['type']!r}, which "
        "has no such thing. Remove one."
        for block, field in _homeless(spec)
    ]
    if problems:
        raise ValueError("\n  ".join(problems))
    _check_batch(spec)


def _homeless(spec: "TrainSpec") -> list[tuple[str, str]]:
    """Fields written in the spec that the document's optimizer or scheduler has no place for: (block, field)."""
    found: dict[tuple[str, str], bool] = {}
    for (block, *_, key), field in ((path, field) for path, field in _SAME.items() if len(path) > 1):
        has = _HAS[block].get(str(_get(spec.deepspeed, (block, "type"))).lower())
        # The learning rate always has a place: the optimizer's.
        if has is not None and field in spec.model_fields_set and field != "learning_rate":
            found[block, field] = found.get((block, field), False) or key in has
    return [place for place, housed in found.items() if not housed]


def precision(spec: "TrainSpec") -> str:
    """The number format of the passes: `bf16`, `fp16` or `fp32`. What the document says counts before our default."""
    written = {name: _get(spec.deepspeed, (name, "enabled")) for name in _PRECISIONS}
    for name, enabled in written.items():
        if enabled is True:
            return name
    if "precision" in spec.model_fields_set or AUTO in written.values():
        return "fp32" if written.get(spec.precision) is False else spec.precision
    if False in written.values() or _get(spec.deepspeed, ("torch_autocast", "enabled")) is True:
        return "fp32"
    return spec.precision


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
    number_format = precision(spec)
    if number_format in _PRECISIONS:
        config.setdefault(number_format, {}).setdefault("enabled", True)
    config.setdefault("gradient_clipping", AUTO)
    _add_missing(config, spec)
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
        ("bf16", "enabled"): number_format == "bf16",
        ("fp16", "enabled"): number_format == "fp16",
        # It asks for what the export does at any rate.
        ("zero_optimization", "stage3_gather_16bit_weights_on_model_save"): True,
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
    if on_cpu and str(optimizer.get("type")).lower() in ("adam", "adamw"):
        # Without it DeepSpeed compiles its own CPU Adam, for most of a minute, at the start of every fresh machine.
        optimizer["params"].setdefault("torch_adam", True)
    return config


def _add_missing(config: dict[str, Any], spec: "TrainSpec") -> None:
    """What the spec says and the document's optimizer or scheduler leaves open: DeepSpeed has defaults of its own."""
    written = {path[-1] for path, field in _SAME.items() if field in spec.model_fields_set} | {"total_num_steps"}
    for block, kinds in _HAS.items():
        params = config[block].setdefault("params", {})
        for key in kinds.get(str(config[block].get("type")).lower(), ()):
            if key in written:
                params.setdefault(key, AUTO)


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
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
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
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError) as error:
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
