"""The configuration is read by DeepSpeed itself before any worker starts."""

import copy
import difflib
import logging
import os
from collections.abc import Iterator
from typing import Any

from maas_ray.errors import Problem, SpecError
from maas_ray.training import conflicts
from maas_ray.training.deepspeed import trial
from maas_ray.training.deepspeed.document import FieldPath, value_at


def check_with_deepspeed(config: dict[str, Any], steps: int = 1) -> set[str]:
    """Let DeepSpeed read a resolved configuration, here rather than in every worker a minute later.

    Args:
        config: the configuration.
        steps: those of the run.

    Returns:
        Names of fields and sections that DeepSpeed did not look for.

    Raises:
        SpecError: DeepSpeed refuses it, or a key is misspelt, which DeepSpeed would silently ignore.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn that it has to guess
    # DeepSpeed takes this process for the only worker.
    alone = {"train_batch_size": config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]}
    document = _Asked(copy.deepcopy(config) | alone)
    problems = [*_misspelt(config), *_refused(document)] or [
        *conflicts.problems_of(config),
        *trial.problems_of(config, steps),
    ]
    if problems:
        raise SpecError("train", problems)
    return document.keys() - document.asked


def check_on_cpu(config: dict[str, Any]) -> None:
    """Return if DeepSpeed has all of a resolved configuration for workers without a GPU.

    Raises:
        SpecError: it has not.
    """
    if problems := conflicts.problems_on_cpu(config):
        raise SpecError("train", problems)


class _Asked(dict[str, Any]):
    """A document that knows the names that were looked up in it."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document)
        self.asked: set[Any] = set()  # a shallow copy of the document shares it

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self.asked.add(key)
        return super().__contains__(key)


def _misspelt(config: dict[str, Any]) -> list[Problem]:
    from deepspeed.runtime import constants

    known = {value for value in vars(constants).values() if isinstance(value, str)} | {"zero_optimization"}
    problems = []
    for key in sorted(config.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if near:
            text = f"deepspeed.{key}: DeepSpeed does not have this field; did you mean `{near[0]}`?"
            problems.append(Problem(text, "deepspeed_unknown_field"))
    return problems


def _refused(document: _Asked) -> list[Problem]:
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        DeepSpeedConfig(document)
    except ValidationError as error:
        return [
            Problem(_invalid(document, error.title, detail), "deepspeed_refused")
            for detail in error.errors(include_url=False)
        ]
    except (DeepSpeedConfigError, AssertionError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [Problem(_in_words(document, error), "deepspeed_refused")]
    return []


def _invalid(document: dict[str, Any], title: str, detail: Any) -> str:
    """Pydantic's error, with the path in the document; Pydantic knows the name of DeepSpeed's class instead."""
    keys, value = tuple(map(str, detail["loc"])), detail["input"]
    # Two sections may hold the same value; the name of the class has that of the section in it.
    paths = sorted(_paths(document, keys, value), key=lambda path: path[0] not in title.lower())
    path = ".".join(paths[0] if paths else (title, *keys))
    if detail["type"] == "extra_forbidden":
        return f"deepspeed.{path} is {value!r}, but DeepSpeed does not have this field. Remove it."
    return f"deepspeed.{path}: {detail['msg']} (found {value!r})."


def _paths(section: dict[str, Any], keys: FieldPath, value: Any, above: FieldPath = ()) -> Iterator[FieldPath]:
    """Paths in a document that end in some keys and lead to a value."""
    if keys and value_at(section, keys) == value:
        yield (*above, *keys)
    for name, inner in section.items():
        if isinstance(inner, dict):
            yield from _paths(inner, keys, value, (*above, name))


def _in_words(document: dict[str, Any], error: Exception) -> str:
    """DeepSpeed's own words, and if they are about a section of the document that was removed, the remedy."""
    words = str(error).strip() or repr(error)
    name = next((name for name in sorted(document) if f"'{name}'" in words and "removed" in words), "")
    return f"deepspeed.{name}: {words} Remove the section." if name else f"deepspeed: {words}"
