"""Tasks and networks by import path: `type: "my_package.my_tasks:MyTask"`, from the user's own code.

A task is a `Task` with a `TaskSpec`, as the platform's own are. A network is a `NetworkSpec`, a `torch.nn.Module`, or a
function that makes one or a Keras model; its arguments are then the spec's fields, checked against its signature, and
an argument called `task` is given the fitted task. Specs of such types travel between processes as their document and
the code itself (see `source`).
"""

import copyreg
import inspect
import random
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from inspect import Parameter, isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import create_model
from pydantic.errors import PydanticUserError

from maas_ray.errors import DataError, MaasError, SpecError
from maas_ray.tasks.base import NetworkSpec, Task, TaskSpec
from maas_ray.tasks.custom import source as sources
from maas_ray.tasks.custom.source import Source

if TYPE_CHECKING:
    import torch

_TASK = "task"
_SAID = ("spec_type", "networks", "unit", "kind", "headline", "request", "answer")


@cache
def task_type(path: str, source: Source) -> type[Task]:
    """The task that an import path means in a source.

    Raises:
        DataError: it means something else.
    """
    found = source.attribute(path)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise DataError(f"{path} is no maas_ray.tasks.Task; a bare network has one around it, see maas_ray.own.")
    if isabstract(found):
        raise DataError(f"{path} lacks {', '.join(sorted(found.__abstractmethods__))}.")
    if missing := [name for name in _SAID if not hasattr(found, name)]:
        raise DataError(f"{path} lacks {', '.join(missing)}; a ModuleTask has features, targets and answers.")
    spec_type = found.spec_type
    if not (isinstance(spec_type, type) and issubclass(spec_type, TaskSpec)) or isabstract(spec_type):
        raise DataError(f"{path}.spec_type must be a whole maas_ray.tasks.TaskSpec; it is {spec_type!r}.")
    for made in (found, spec_type):
        if sources.source_of(made) != source:
            raise DataError(f"{made.__name__} stands in {made.__module__}, which does not travel; define it in {path}.")
    _bind(spec_type, source)
    return found


@cache
def network_type(path: str, source: Source) -> type[NetworkSpec]:
    """The network's spec that an import path means in a source; made from a signature where it names a module.

    Raises:
        DataError: it means something else, or has arguments that no spec can give.
    """
    found = source.attribute(path)
    if isinstance(found, type) and issubclass(found, NetworkSpec):
        spec_type = found
    elif callable(found):
        spec_type = _from_signature(path, found)
    else:
        raise DataError(f"{path} is neither a class nor a function; give a torch.nn.Module, or what makes one.")
    _bind(spec_type, source)
    return spec_type


def _bind(spec_type: type[TaskSpec] | type[NetworkSpec], source: Source) -> None:
    spec_type.own_source = source
    copyreg.pickle(spec_type, _reduced)


def _reduced(spec: Any) -> tuple[Any, ...]:
    return _rebuilt, (spec.own_source, spec.document(), isinstance(spec, NetworkSpec))


def _rebuilt(source: Source, document: dict[str, Any], network: bool) -> Any:
    """In another process of the job. Who could make this process call it could run anything here anyway."""
    sources.vouch([source.digest])
    path = document["type"]
    spec_type = network_type(path, source) if network else task_type(path, source).spec_type
    return spec_type.parse(document)


def parse_task(value: Mapping[str, Any]) -> TaskSpec:
    """What stands under `task:`, its type an import path of the caller's own code.

    Raises:
        ValueError: it is wrong; says how.
    """
    path = value["type"]
    spec: TaskSpec = _parsed(lambda: task_type(path, sources.local(path)).spec_type, value)
    return spec


def parse_network(value: Mapping[str, Any]) -> NetworkSpec:
    """What stands under `network:`, likewise."""
    path = value["type"]
    spec: NetworkSpec = _parsed(lambda: network_type(path, sources.local(path)), value)
    return spec


def _parsed(found: Callable[[], Any], value: Mapping[str, Any]) -> Any:
    try:
        return found().parse(value)
    except SpecError as error:
        raise ValueError("; ".join(error.problems)) from error
    except MaasError as error:
        raise ValueError(f"type: {error}") from error


def load_network(document: dict[str, Any], directory: Path, digest: str) -> NetworkSpec:
    """The network's spec of a bundle, from the code that the bundle brings.

    Raises:
        UntrustedCodeError: that may not run here.
    """
    path = document["type"]
    source = sources.admitted(directory, digest, path)
    return network_type(path, source).parse(document, source=str(directory))


# --- networks from a signature ---------------------------------------------------------------------


class ModuleNetwork(NetworkSpec):
    """A network that its own constructor, or a function, makes."""

    made_by: ClassVar[Callable[..., Any]]
    takes_task: ClassVar[bool]

    def build(self, task: Task) -> "torch.nn.Module":
        import torch

        arguments = {name: getattr(self, name) for name in type(self).model_fields if name != "type"}
        with _seeded(torch.initial_seed()):
            made = self.made_by(**arguments, **({_TASK: task} if self.takes_task else {}))
        if any(one.__module__.startswith("keras.") for one in type(made).__mro__):
            from maas_ray.tasks.custom.keras import KerasNetwork

            return KerasNetwork.built(made, task)
        if not isinstance(made, torch.nn.Module):
            raise DataError(f"{self.type} made a {type(made).__name__}; it must be a torch.nn.Module or a Keras model.")
        return made

    def skeleton(self, task: Task) -> "torch.nn.Module":
        try:
            return super().skeleton(task)
        except Exception:  # whatever a constructor that computes with values meets where there are none
            return self.build(task)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's numbers come from Torch's seed, which is the run's: Keras draws weights with the former."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def _from_signature(path: str, made_by: Callable[..., Any]) -> type[NetworkSpec]:
    try:
        hints = typing.get_type_hints(made_by.__init__ if isinstance(made_by, type) else made_by)  # type: ignore[misc]
    except (NameError, TypeError):
        hints = {}
    fields: dict[str, Any] = {"type": (Literal[path], path)}
    taken = {*dir(NetworkSpec), *NetworkSpec.model_fields} - {_TASK}
    takes_task = False
    for name, parameter in inspect.signature(made_by).parameters.items():
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if name == _TASK:
            takes_task = True
            continue
        if name in taken or name.startswith("_") or parameter.kind is Parameter.POSITIONAL_ONLY:
            raise DataError(f"{path}: its argument {name!r} cannot be a field of a spec; rename it.")
        default = ... if parameter.default is Parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    try:
        made: type[ModuleNetwork] = create_model(
            path.partition(":")[2], __base__=ModuleNetwork, __module__=__name__, **fields
        )
    except PydanticUserError as error:
        raise DataError(f"{path}: an argument's type is none that YAML can give: {error.message}") from error
    made.made_by, made.takes_task = staticmethod(made_by), takes_task
    return made
