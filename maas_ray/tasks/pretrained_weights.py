"""The weights in the directory of a Transformers model: those that are missing, not used, or stored apart.

Transformers only logs such differences. A model could be trained whose weights are random, or whose configuration says
of its head what its file does not.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maas_ray.errors import DataError

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Transformers reads the first that exists, whole or in parts."""

# A model may lack these: its other heads do without them, and training makes them.
_NOT_ESSENTIAL = re.compile(r"(^|\.)(pooler\.|masked_spec_embed$)")
_NAMED = 3


def check_format(config: Any, directory: Path) -> None:
    """Return if a directory holds a whole model with numbers that can be trained.

    Raises:
        DataError: it holds an adapter, or quantized weights.
    """
    if (directory / "adapter_config.json").is_file():
        raise DataError(
            f"network.path: {directory} holds an adapter (adapter_config.json). Merge it into its model first, with "
            "peft's merge_and_unload.",
            code="adapter_unsupported",
        )
    if getattr(config, "quantization_config", None):
        raise DataError(
            f"network.path: the weights in {directory} are quantized (quantization_config in config.json), so they "
            "cannot be trained. Give the model in bf16, fp16 or fp32.",
            code="quantized_unsupported",
        )


def check_weights(model: Any, report: Mapping[str, Any], directory: Path, *, labelled: bool) -> list[str]:
    """Lines about weights that are initialised at random, and about weights in the files that are not used.

    Args:
        model: the model that Transformers has loaded; its values do not matter.
        report: Transformers' report of loading it.
        directory: the model's directory.
        labelled: True if the head has a row for each label of the task, so that it may be new.

    Raises:
        DataError: weights other than those of the head are missing or have another shape.
    """
    absent = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    base = f"{model.base_model_prefix}."
    new = {name for name in absent if _NOT_ESSENTIAL.search(name)}
    if labelled and hasattr(model, model.base_model_prefix):
        new |= {name for name in absent if not name.startswith(base)}
    unused = set(report["unexpected_keys"])
    if lost := absent - new:
        others = f" It holds others, such as {_some(unused)}: are their names those of this model?" if unused else ""
        raise DataError(
            f"network.path: {directory} lacks {len(lost)} weights of {type(model).__name__} in the shape that its "
            f"config.json says, such as {_some(lost)}.{others} Give a directory that `save_pretrained` has written "
            "for a model of this task.",
            code="weights_missing",
        )
    lines = []
    if new:
        lines.append(f"network.path: initialised at random, because {directory} does not hold them: {_some(new)}")
    if unused:
        lines.append(f"network.path: {len(unused)} weights in {directory} are not used, such as {_some(unused)}")
    return lines


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers from printing its own report and its progress."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def stored_apart(directory: Path, auto: Any, config: Any) -> bool:
    """True if a directory holds different values for weights that a model of an Auto class ties.

    Args:
        directory: the model's directory.
        auto: Transformers' Auto class.
        config: the model's configuration.
    """
    model = auto._model_mapping.get(type(config), None)
    tied = getattr(model, "_tied_weights_keys", None) or {}
    files = _files_of(directory)
    for target, source in tied.items():
        stored = [_stored(name, files) for name in (target, source)]
        if all(stored) and stored[0] != stored[1]:
            first, second = (_value(name, files[name]) for name in stored if name)
            if first.shape != second.shape or not first.equal(second):
                return True
    return False


def _files_of(directory: Path) -> dict[str, Path]:
    """The file of each weight in a directory."""
    for name in _FILES:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return dict.fromkeys(_open(directory / name).keys(), directory / name)
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {weight: directory / part for weight, part in parts.items()}
    return {}


def _open(path: Path) -> Any:
    """A mapping of a file's weights; nothing is read yet."""
    import torch
    from safetensors import safe_open

    if path.suffix == ".safetensors":
        return safe_open(path, framework="pt")
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _value(name: str, path: Path) -> Any:
    weights = _open(path)
    return weights[name] if isinstance(weights, dict) else weights.get_tensor(name)


def _stored(name: str, files: Mapping[str, Path]) -> str | None:
    """The name in the files of a model's weight. A model's base may be saved without its prefix, or with one."""
    ends = (stored for stored in files if stored.endswith(f".{name}") or name.endswith(f".{stored}"))
    return name if name in files else next(ends, None)


def _some(names: set[str]) -> str:
    """A few names, in words."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more
