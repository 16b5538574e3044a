"""A network as its spec builds it, as a bundle holds it, and as serving calls it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from maas_ray.spec import Spec
from maas_ray.user_code.source import SourceCode

if TYPE_CHECKING:
    import torch

Forward = Callable[..., Any]
"""A network, or an engine that wraps one: called with the tensors of `Task.collate`."""

CONFIG_FILE = "config.json"
SOURCE_FIELD = "maas_source"
"""In `config.json`: digest of the user's code that defines the network."""


class NetworkSpec(Spec, ABC):
    """The fields that a user writes under `network:`."""

    type: str
    """Which network."""

    of_transformers: ClassVar[bool] = False
    """True if Transformers builds it."""
    own_source: ClassVar[SourceCode | None] = None
    """The user's code that defines it. None: the platform does."""

    @abstractmethod
    def build(self, task: Any) -> "torch.nn.Module":
        """The network for a fitted task, with its initial (random or pretrained) weights in fp32."""

    def check(self, task: Any) -> list[str]:
        """Return if the network can be built for a fitted task; gives lines about what a user may not expect of it.

        Raises:
            DataError: it cannot; the message says what to change.
        """
        return []

    def skeleton(self, task: Any) -> "torch.nn.Module":
        """The network without values, on torch's meta device: its config, names, shapes and dtypes."""
        import torch

        with torch.device("meta"):
            return self.build(task)

    def write_config(self, module: "torch.nn.Module", task: Any, directory: Path) -> None:
        """Write `config.json`, from which `Task.load_model` builds the network again."""
        config = {"maas_network": self.document(), "architectures": [type(module).__name__]}
        if self.own_source is not None:
            self.own_source.write(directory)
            config[SOURCE_FIELD] = self.own_source.digest
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class OnDevice:
    """A network that computes on a device, called with tensors on the CPU and answering with tensors on the CPU."""

    def __init__(self, module: "torch.nn.Module", device: str) -> None:
        self.module, self.device = module.to(device), device

    def __call__(self, **tensors: Any) -> Any:
        """Call the network."""
        from torch.utils._pytree import tree_map

        result = self.module(**{name: self._moved(value, self.device) for name, value in tensors.items()})
        return tree_map(lambda value: self._moved(value, "cpu"), result)

    @staticmethod
    def _moved(value: Any, device: str) -> Any:
        return value.to(device) if hasattr(value, "to") else value


def type_of(spec: type[Spec]) -> str:
    """The `type` that a task's or network's spec is written under."""
    return str(spec.model_fields["type"].default)


def load_config(directory: Path) -> dict[str, Any]:
    """A bundle's `config.json`."""
    document: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    return document


def load_weights(module: "torch.nn.Module", directory: Path) -> "torch.nn.Module":
    """Load every `*.safetensors` of a directory into a module, strictly; puts it in eval mode."""
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for path in sorted(directory.glob("*.safetensors")):
        state |= load_file(path)
    module.load_state_dict(state, strict=True)
    return module.eval()
