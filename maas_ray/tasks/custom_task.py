"""Tasks by import path: `type: "my_package.my_tasks:MyTask"`, from the user's own code.

A user's task is a `Task` with a `TaskSpec`, as the platform's own are.
"""

import json
from collections.abc import Mapping
from functools import cache
from inspect import isabstract
from pathlib import Path
from typing import Any

from maas_ray.errors import DataError
from maas_ray.tasks.task import TASK_FILE, Task, TaskSpec
from maas_ray.user_code.binding import bind, parse_bound
from maas_ray.user_code.source import SourceCode, source_of
from maas_ray.user_code.trust import changed

_METHODS = ("weights", "parameters", "augment")
_REQUIRED = ("spec_type", "networks", "unit", "kind", "headline", "request", "answer")


@cache
def task_type(path: str, source: SourceCode) -> type[Task]:
    """The task at an import path of a source.

    Raises:
        DataError: there is no complete task at that path.
    """
    found = source.attribute(path)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise DataError(
            f"{path} must be a maas_ray.tasks.Task. To put a task around a bare network, see maas_ray.own.",
            code="wrong_class",
        )
    missing = sorted(found.__abstractmethods__) if isabstract(found) else []
    if missing := missing or [name for name in _REQUIRED if not hasattr(found, name)]:
        raise DataError(
            f"{path} must define {', '.join(missing)}. A ModuleTask has features, targets and answers.",
            code="members_missing",
        )
    if taken := [name for name in _METHODS if not callable(getattr(found, name))]:
        raise DataError(
            f"{path} must not use the name of a method of maas_ray.tasks.Task for other data: {', '.join(taken)}. "
            "Rename it.",
            code="reserved_name",
        )
    spec_type = found.spec_type
    if not (isinstance(spec_type, type) and issubclass(spec_type, TaskSpec)) or isabstract(spec_type):
        raise DataError(
            f"{path}.spec_type must be a complete maas_ray.tasks.TaskSpec; it is {spec_type!r}.", code="wrong_class"
        )
    for defined in (found, spec_type):
        if source_of(defined) != source:
            raise DataError(
                f"{defined.__name__} is defined in {defined.__module__}, which is not carried with the dataset; define "
                f"it in {path}.",
                code="defined_elsewhere",
            )
    bind(spec_type, source, _spec_type)
    task: type[Task] = found
    return task


def _spec_type(path: str, source: SourceCode) -> type[TaskSpec]:
    return task_type(path, source).spec_type


def parse_task(value: Mapping[str, Any]) -> TaskSpec:
    """The spec that `task:` holds, if its type is an import path of the caller's own code.

    Raises:
        InvalidError: the code or a field is wrong.
    """
    spec: TaskSpec = parse_bound(_spec_type, value)
    return spec


def check_unchanged(directory: Path) -> None:
    """Return if the caller's own code is still the code that a prepared task was made with, or is not here.

    Args:
        directory: local copy of the prepared task.

    Raises:
        DataError: the code was changed.
    """
    document = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
    if "source" not in document:
        return
    path, digest = document["task"]["type"], document["source"]
    try:
        here = SourceCode.find(path.partition(":")[0])
    except DataError:
        return
    if here.digest != digest:
        carried = SourceCode.load(directory, digest)
        raise DataError(f"{changed(path, here, carried)} Run `maas prepare` again.", code="code_changed")
