"""Networks by import path: `type: "my_package.my_nets:Net"`, from the user's own code.

A network is a `NetworkSpec`, a `torch.nn.Module`, or a function that returns a module or a Keras model. The arguments
of a module or function become the spec's fields, checked against its signature. An argument called `task` receives the
fitted task.
"""

import inspect
import random
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import create_model
from pydantic.errors import PydanticUserError

from maas_ray.errors import DataError
from maas_ray.tasks.network import NetworkSpec
from maas_ray.user_code.binding import bind, parse_bound
from maas_ray.user_code.source import SourceCode
from maas_ray.user_code.trust import admitted

if TYPE_CHECKING:
    import torch

_TASK = "task"


@cache
def network_type(path: str, source: SourceCode) -> type[NetworkSpec]:
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
    bind(spec_type, source, network_type)
    return spec_type


def parse_network(value: Mapping[str, Any]) -> NetworkSpec:
    """The spec that `network:` holds, if its type is an import path of the caller's own code.

    Raises:
        InvalidError: the code or a field is wrong.
    """
    spec: NetworkSpec = parse_bound(network_type, value)
    return spec


def load_network(document: dict[str, Any], directory: Path, digest: str) -> NetworkSpec:
    """The network's spec of a bundle, from the code that the bundle brings.

    Raises:
        UntrustedCodeError: that may not run here.
    """
    path = document["type"]
    source = admitted(directory, digest, path)
    return network_type(path, source).parse(document, source=str(directory))


# --- networks from a signature ---------------------------------------------------------------------


class ModuleNetwork(NetworkSpec):
    """A network that its own constructor, or a function, makes."""

    made_by: ClassVar[Callable[..., Any]]
    takes_task: ClassVar[bool]

    def build(self, task: Any) -> "torch.nn.Module":
        import torch

        arguments = {name: getattr(self, name) for name in type(self).model_fields if name != "type"}
        with _seeded(torch.initial_seed()):
            made = self.made_by(**arguments, **({_TASK: task} if self.takes_task else {}))
        if any(one.__module__.startswith("keras.") for one in type(made).__mro__):
            from maas_ray.tasks.networks.keras import KerasNetwork

            return KerasNetwork.built(made, task)
        if not isinstance(made, torch.nn.Module):
            raise DataError(f"{self.type} made a {type(made).__name__}; it must be a torch.nn.Module or a Keras model.")
        return made

    def skeleton(self, task: Any) -> "torch.nn.Module":
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
