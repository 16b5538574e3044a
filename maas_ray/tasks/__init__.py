"""The tasks, by Hugging Face's pipeline tags. A new one is a module here: it is found by itself."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from maas_ray.errors import CorruptError
from maas_ray.spec import Spec
from maas_ray.tasks.base import (
    TASK_FILE,
    AnswerRow,
    Column,
    NetworkSpec,
    Packing,
    RequestRow,
    Row,
    Task,
    TaskSpec,
    TensorSpec,
    type_of,
)


def _found() -> Iterator[type[Task]]:
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Task) and not isabstract(value):
                yield value


def _networks() -> Iterator[type[NetworkSpec]]:
    by_type: dict[str, type[NetworkSpec]] = {}
    for network in (network for task in TASKS for network in task.networks):
        name = type_of(network)
        if by_type.setdefault(name, network) is not network:
            raise TypeError(f"two networks are called {name!r}: {by_type[name]} and {network}")
    yield from by_type.values()


TASKS: tuple[type[Task], ...] = tuple(dict.fromkeys(_found()))

if TYPE_CHECKING:
    AnyTaskSpec = TaskSpec
    AnyNetworkSpec = NetworkSpec
else:
    AnyTaskSpec = Annotated[Union[tuple(task.spec_type for task in TASKS)], Field(discriminator="type")]  # noqa: UP007
    AnyNetworkSpec = Annotated[Union[tuple(_networks())], Field(discriminator="type")]  # noqa: UP007


class _TaskDocument(Spec):
    task: AnyTaskSpec


def find_task(name: str) -> type[Task] | None:
    """The task of a type such as `image-classification`; None: nobody knows it here."""
    return next((task for task in TASKS if type_of(task.spec_type) == name), None)


def load_task(directory: Path) -> Task:
    """The task that was saved into a local directory: a dataset's `task/`, or a model bundle.

    Raises:
        CorruptError: there is no readable `task.json`.
    """
    try:
        document = json.loads((directory / TASK_FILE).read_text(encoding="utf-8"))
        spec = _TaskDocument.parse({"task": document["task"]}, source=str(directory / TASK_FILE)).task
        state = document["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{directory / TASK_FILE} cannot be read: {error}") from error
    task_type: type[Task] = next(task for task in TASKS if task.spec_type is type(spec))
    return task_type.load_state(spec, state, directory)


__all__ = [
    "TASKS",
    "AnswerRow",
    "AnyNetworkSpec",
    "AnyTaskSpec",
    "Column",
    "NetworkSpec",
    "Packing",
    "RequestRow",
    "Row",
    "Task",
    "TaskSpec",
    "TensorSpec",
    "find_task",
    "load_task",
]
