"""Tasks by import path: `type: "my_package.my_tasks:MyTask"`, from the user's own code.

Such a task is a `Task` with a `TaskSpec`, as the platform's own are.
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

_REQUIRED = ("spec_type", "networks", "unit", "kind", "headline", "request", "answer")


@cache
def task_type(path: str, source: SourceCode) -> type[Task]:
    """The task at an import path of a source.

    Raises:
        DataError: there is no complete task at that path.
    """
    found = source.attribute(path)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise DataError(f"{path} is no maas_ray.tasks.Task; a bare network has one around it, see maas_ray.own.")
    if isabstract(found):
        raise DataError(f"{path} lacks {', '.join(sorted(found.__abstractmethods__))}.")
    if missing := [name for name in _REQUIRED if not hasattr(found, name)]:
        raise DataError(f"{path} lacks {', '.join(missing)}; a ModuleTask has features, targets and answers.")
    spec_type = found.spec_type
    if not (isinstance(spec_type, type) and issubclass(spec_type, TaskSpec)) or isabstract(spec_type):
        raise DataError(f"{path}.spec_type must be a whole maas_ray.tasks.TaskSpec; it is {spec_type!r}.")
    for made in (found, spec_type):
        if source_of(made) != source:
            raise DataError(f"{made.__name__} stands in {made.__module__}, which does not travel; define it in {path}.")
    bind(spec_type, source, _spec_type)
    return found


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
        raise DataError(f"{changed(path, here, carried)} Run `maas prepare` again.")
