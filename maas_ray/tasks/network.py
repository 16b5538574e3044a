"""A network as its spec builds it, as a bundle holds it, and as serving calls it."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    learning_rate: ClassVar[float] = 1e-3
    """Default peak learning rate of a training."""

    @abstractmethod
    def build(self, task: Any) -> "torch.nn.Module":
        """The network for a fitted task, with its initial (random or pretrained) weights in fp32."""

    def check(self, task: Any) -> list[str]:
        """Return if the network can be built for a fitted task; gives lines about what a user may not expect of it.

        Raises:
            DataError: it cannot; the message says what to change.
        """
        return []

    def identity(self) -> dict[str, Any]:
        """Fingerprint of what this spec decides: its fields, and the digests of files that they name.

        Fields that change only how the same is computed are not part of it.
        """
        document = self.model_dump(mode="json", exclude={"gradient_checkpointing"})
        files = _named_files(document) if self.own_source is not None else {}
        return document | ({"maas_files": file_digests(files)} if files else {})

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


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """The sha256 of local files, in hex, by name; several are read at a time."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(digest, files.values()), strict=True))


def _named_files(value: Any) -> dict[str, Path]:
    """Local files that a document's values name by a path or with a suffix, and those of directories of weights."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return {name: path for item in inner for name, path in _named_files(item).items()}
    # A plain word, such as `gelu`, is not a path even if a file has that name.
    if not isinstance(value, str) or "\0" in value or not (os.sep in value or Path(value).suffix):
        return {}
    path = Path(value).expanduser()
    if path.is_dir() and ((path / CONFIG_FILE).is_file() or any(path.glob("*.safetensors"))):
        return {f"{value}/{file.name}": file for file in sorted(path.iterdir()) if file.is_file()}
    return {value: path} if path.is_file() else {}


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
