"""LoRA adapters as PEFT saves them: the weights that they change, by how much, and the bases that they fit.

    adapter_config.json          the kind, and the scale
    adapter_model.safetensors    for each changed weight: A [rank, in] and B [out, rank]

A changed weight is W + scale · B · A. An adapter that would have to change anything else is refused, and no part of
it is ignored. Knows nothing of engines; reads without Torch.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.errors import DeploymentError
from maas_ray.registry.bundle import Bundle
from maas_ray.registry.versions import ModelVersion

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_Shapes = Mapping[str, tuple[int, ...]]
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Fields that describe the training. Answers depend only on the weights.
_OF_TRAINING = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules"),
    "task_type",
}
_UNDERSTOOD = {"r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "fan_in_fan_out"}
# Other initialisations change the base as well, so the adapter is not the whole difference.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class _Change:
    """One changed weight."""

    rows: int
    columns: int
    scale: float


class Lora:
    """An adapter.

    Args:
        config: PEFT's configuration.
        shapes: shapes of the adapter's tensors, by name.
        source: its location, for error messages.

    Raises:
        DeploymentError: the adapter changes more than can be added to a base here.
    """

    def __init__(self, config: Mapping[str, Any], shapes: _Shapes, source: str) -> None:
        self._source = source
        self._check_config(config)
        self._transposed = bool(config.get("fan_in_fan_out"))
        modules = {name.removeprefix(_PREFIX).removesuffix(_A) for name in shapes if name.endswith(_A)}
        whole = {f"{_PREFIX}{module}{part}" for module in modules for part in (_A, _B)}
        if not modules or shapes.keys() != whole:
            odd = sorted(shapes.keys() ^ whole)[:3] or "no tensors"
            raise self._refusal(
                "adapter_tensors", f"it must hold lora_A and lora_B of linear layers and nothing else, but has {odd}"
            )
        self.changes = {module: self._change(module, config, shapes) for module in sorted(modules)}

    @classmethod
    def load(cls, directory: Path) -> "Lora":
        """The adapter in a directory."""
        weights = {name: array.shape for name, array in _arrays(directory / WEIGHTS)}
        return cls(json.loads((directory / CONFIG).read_text(encoding="utf-8")), weights, str(directory))

    def deltas(self, directory: Path) -> Iterator[tuple[str, "NDArray[np.float32]"]]:
        """The change of each weight, by the name of its module: float32 [out, in]."""
        arrays = dict(_arrays(directory / WEIGHTS))
        for module, change in self.changes.items():
            a, b = (arrays[f"{_PREFIX}{module}{part}"] for part in (_A, _B))
            yield module, change.scale * (b @ a)

    def merge(self, network: Any, directory: Path) -> None:
        """Add the adapter to the weights of a Transformers model."""
        import torch

        for module, delta in self.deltas(directory):
            weight = network.get_submodule(module).weight
            added = torch.from_numpy(delta.T if self._transposed else delta)
            weight.data += added.to(weight.device, weight.dtype)

    def check_fits(self, base: _Shapes, name: str) -> None:
        """Check that a base has the changed weights, in the same shapes.

        Raises:
            DeploymentError: the base does not fit; names the first such weight.
        """
        for module, change in self.changes.items():
            shape = (change.columns, change.rows) if self._transposed else (change.rows, change.columns)
            own = base.get(f"{module}.weight")
            if own != shape:
                has = f"its shape is {list(own)}" if own else "that weight does not exist"
                raise self._refusal(
                    "adapter_does_not_fit", f"it changes {module}.weight of shape {list(shape)}, but in {name} {has}"
                )

    def _check_config(self, config: Mapping[str, Any]) -> None:
        if config.get("peft_type") != "LORA":
            raise self._refusal("adapter_kind", f"its peft_type is {config.get('peft_type')!r}; only LORA is supported")
        if config.get("init_lora_weights") not in _INITIALISATIONS:
            raise self._refusal(
                "adapter_changes_base",
                f"init_lora_weights: {config['init_lora_weights']!r} changes the base too; convert it to plain LoRA "
                "with PEFT's path_initial_model_for_weight_conversion",
            )
        neutral = {"bias": "none", "peft_type": "LORA"}
        known = _OF_TRAINING | _UNDERSTOOD | {"init_lora_weights"}
        for field, value in config.items():
            if value and field not in known and value != neutral.get(field):
                raise self._refusal("adapter_option", f"it has {field}: {value!r}, which is not supported")

    def _change(self, module: str, config: Mapping[str, Any], shapes: _Shapes) -> _Change:
        a, b = shapes[f"{_PREFIX}{module}{_A}"], shapes[f"{_PREFIX}{module}{_B}"]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise self._refusal(
                "adapter_tensors",
                f"lora_A and lora_B of {module} have shapes {list(a)} and {list(b)}, without a common rank",
            )
        rank = a[0]
        alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
        return _Change(b[0], a[1], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    def _refusal(self, code: str, why: str) -> DeploymentError:
        return DeploymentError(f"the adapter at {self._source} cannot be served: {why}.", code=code)


def is_adapter(bundle: Bundle) -> bool:
    """True if a bundle is an adapter, and not a model by itself."""
    return {entry.path for entry in bundle.artifact.files} >= {CONFIG, WEIGHTS}


def check(adapter: ModelVersion, base: ModelVersion) -> None:
    """Check that an adapter fits a base. Reads only the headers of their weight files.

    Raises:
        MaasError: it does not; or a bundle is missing, damaged, or not the one that was registered.
    """
    bundle = adapter.open()
    if not is_adapter(bundle):
        raise DeploymentError(
            f"{adapter.reference} is not a LoRA adapter: its bundle must contain {CONFIG} and {WEIGHTS}.",
            code="not_an_adapter",
        )
    if adapter.lineage.parent not in ("", base.reference):
        raise DeploymentError(
            f"the adapter {adapter.reference} was trained for {adapter.lineage.parent}, not for {base.reference}; "
            "deploy it with that version, or train one for this version.",
            code="adapter_of_another_model",
        )
    lora = Lora(json.loads(bundle.artifact.read(CONFIG)), bundle.shapes(), adapter.reference)
    lora.check_fits(base.open().shapes(), base.reference)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches an end of the module's name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _arrays(path: Path) -> Iterator[tuple[str, "NDArray[np.float32]"]]:
    """The tensors of a safetensors file as float32; NumPy itself has no bfloat16."""
    from safetensors import deserialize

    tensors: Any = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    for name, tensor in tensors:
        data, kind = tensor["data"], tensor["dtype"]
        if kind == "BF16":
            array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif kind in ("F16", "F32"):
            array = np.frombuffer(data, np.float16 if kind == "F16" else np.float32).astype(np.float32)
        else:
            raise DeploymentError(
                f"{path}: the tensor {name} has type {kind}; use F32, F16 or BF16.", code="adapter_tensors"
            )
        yield name, array.reshape(tensor["shape"])
