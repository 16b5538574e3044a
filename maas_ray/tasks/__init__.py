"""The tasks, named by Hugging Face's pipeline tags. A task in a module here, or exported by a folder, is discovered.

A task or network of the user's own code is named by its import path, `package.module:Name`; see `maas_ray.own`.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, SerializeAsAny, WrapValidator

from maas_ray.errors import CorruptError, InvalidError, UnlearntError
from maas_ray.spec import Spec
from maas_ray.spec.fields import user_type
from maas_ray.tasks.custom_network import parse_network
from maas_ray.tasks.custom_task import parse_task, task_type
from maas_ray.tasks.network import Forward, NetworkSpec, type_of
from maas_ray.tasks.rows import (
    REST,
    AnswerRow,
    Column,
    OptionalTensor,
    Packing,
    Ragged,
    RequestRow,
    Row,
    Steps,
    TensorSpec,
)
from maas_ray.tasks.task import TASK_FILE, Outcomes, Task, TaskSpec
from maas_ray.user_code.source import is_import_path
from maas_ray.user_code.trust import admitted


def _discover() -> Iterator[type[Task]]:
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Task) and not isabstract(value):
                yield value


def _networks() -> Iterator[type[NetworkSpec]]:
    by_type: dict[str, type[NetworkSpec]] = {}
    for network in (network for task in TASKS for network in task.networks):
        name = type_of(network)
        if by_type.setdefault(name, network) is not network:
            raise TypeError(f"two networks have the type {name!r}: {by_type[name]} and {network}")
    yield from by_type.values()


TASKS: tuple[type[Task], ...] = tuple(dict.fromkeys(_discover()))


def _task(value: Any, known: Any) -> Any:
    own = isinstance(value, dict) and is_import_path(value.get("type"))
    return parse_task(value) if own else value if getattr(value, "own_source", None) else known(value)


def _network(value: Any, known: Any) -> Any:
    own = isinstance(value, dict) and is_import_path(value.get("type"))
    return parse_network(value) if own else value if getattr(value, "own_source", None) else known(value)


if TYPE_CHECKING:
    AnyTaskSpec = TaskSpec
    AnyNetworkSpec = NetworkSpec
else:
    _Known = Annotated[Union[tuple(task.spec_type for task in TASKS)], Field(discriminator="type")]  # noqa: UP007
    _TaskInput = _Known | user_type("type")
    AnyTaskSpec = Annotated[SerializeAsAny[_Known], WrapValidator(_task, json_schema_input_type=_TaskInput)]
    _KnownNetwork = Annotated[Union[tuple(_networks())], Field(discriminator="type")]  # noqa: UP007
    _NetworkInput = _KnownNetwork | user_type("type")
    AnyNetworkSpec = Annotated[
        SerializeAsAny[_KnownNetwork], WrapValidator(_network, json_schema_input_type=_NetworkInput)
    ]


class _TaskDocument(Spec):
    task: AnyTaskSpec


def _name(task: type[Task]) -> str:
    return type_of(task.spec_type)


def find_task(name: str) -> type[Task] | None:
    """The task of a type such as `image-classification`, or None if there is none."""
    return next((task for task in TASKS if _name(task) == name), None)


def load_task(directory: Path) -> Task:
    """The task that was saved into a local directory: a dataset's `task/`, or a model bundle.

    Raises:
        CorruptError: `task.json` is missing or cannot be read.
        UntrustedCodeError: the directory brings code that may not run here.
    """
    path = directory / TASK_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        name, state = document["task"]["type"], document["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} cannot be read: {error}", code="unreadable_task") from error
    if is_import_path(name) and "source" in document:
        own = task_type(name, admitted(directory, document["source"], name))
        return own.load_state(own.spec_type.parse(document["task"], source=str(path)), state, directory)
    known = find_task(name)
    try:
        if known is None:
            raise InvalidError("unknown_task", f"unknown task {name!r}; available: {', '.join(map(_name, TASKS))}")
        spec = _TaskDocument.parse({"task": document["task"]}, source=str(path)).task
    except ValueError as error:
        raise CorruptError(f"{path} cannot be read: {error}", code="unreadable_task") from error
    return known.load_state(spec, state, directory)


__all__ = [
    "REST",
    "TASKS",
    "AnswerRow",
    "AnyNetworkSpec",
    "AnyTaskSpec",
    "Column",
    "Forward",
    "NetworkSpec",
    "OptionalTensor",
    "Outcomes",
    "Packing",
    "Ragged",
    "RequestRow",
    "Row",
    "Steps",
    "Task",
    "TaskSpec",
    "TensorSpec",
    "UnlearntError",
    "find_task",
    "load_task",
]
