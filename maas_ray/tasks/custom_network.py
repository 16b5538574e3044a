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
    """The network's spec at an import path of some code, derived from the signature of a module or function.

    Raises:
        DataError: there is no network at that path, or it has arguments that a spec cannot give.
    """
    found = source.attribute(path)
    if isinstance(found, type) and issubclass(found, NetworkSpec):
        spec_type = found
    elif callable(found):
        spec_type = _from_signature(path, found)
    else:
        raise DataError(
            f"{path} must be a torch.nn.Module or a function that returns one; it is a {type(found).__name__}.",
            code="wrong_class",
        )
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
    """The network's spec in a bundle, defined by code that the bundle brings.

    Raises:
        UntrustedCodeError: the code may not run here.
    """
    path = document["type"]
    source = admitted(directory, digest, path)
    return network_type(path, source).parse(document, source=str(directory))


# --- networks from a signature ---------------------------------------------------------------------


class ModuleNetwork(NetworkSpec):
    """A network that a constructor or a function of the user's code returns."""

    factory: ClassVar[Callable[..., Any]]
    takes_task: ClassVar[bool]

    def build(self, task: Any) -> "torch.nn.Module":
        import torch

        arguments = {name: getattr(self, name) for name in type(self).model_fields if name != "type"}
        with _seeded(torch.initial_seed()):
            network = self.factory(**arguments, **({_TASK: task} if self.takes_task else {}))
        if any(base.__module__.startswith("keras.") for base in type(network).__mro__):
            from maas_ray.tasks.networks.keras import KerasNetwork

            return KerasNetwork.built(network, task)
        if not isinstance(network, torch.nn.Module):
            raise DataError(
                f"{self.type} returned a {type(network).__name__}; it must return a torch.nn.Module or a Keras model.",
                code="wrong_class",
            )
        return network

    def skeleton(self, task: Any) -> "torch.nn.Module":
        try:
            return super().skeleton(task)
        except Exception:  # a constructor may compute with values, which the meta device lacks
            return self.build(task)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed Python and NumPy with Torch's seed, which is the run's: Keras initialises weights with their generators."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def _from_signature(path: str, factory: Callable[..., Any]) -> type[NetworkSpec]:
    try:
        hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory)  # type: ignore[misc]
    except (NameError, TypeError):
        hints = {}
    fields: dict[str, Any] = {"type": (Literal[path], path)}
    taken = {*dir(NetworkSpec), *NetworkSpec.model_fields} - {_TASK}
    takes_task = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if name == _TASK:
            takes_task = True
            continue
        if name in taken or name.startswith("_") or parameter.kind is Parameter.POSITIONAL_ONLY:
            raise DataError(
                f"{path}: the argument {name!r} cannot be a field of a spec; rename it.", code="invalid_argument"
            )
        default = ... if parameter.default is Parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    try:
        spec_type: type[ModuleNetwork] = create_model(
            path.partition(":")[2], __base__=ModuleNetwork, __module__=__name__, **fields
        )
    except PydanticUserError as error:
        raise DataError(
            f"{path}: the type of an argument cannot be written in YAML: {error.message}", code="invalid_argument"
        ) from error
    spec_type.factory, spec_type.takes_task = staticmethod(factory), takes_task
    return spec_type
