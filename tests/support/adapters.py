"""Small LoRA adapters of small models, made by PEFT itself."""

import warnings
from pathlib import Path
from typing import Any

from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings


def adapted(base: Path, *, seed: int = 1, size: float = 0.3, **config: Any) -> Any:
    """PEFT's model over the base in a directory, its adapter's weights random and not small."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    asked = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    with warnings.catch_warnings():
        # PEFT asks Transformers by names that are to go, and warns of what a bias or a tied weight may mean.
        warnings.simplefilter("ignore")
        model = get_peft_model(network, LoraConfig(**asked))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, size)
    return model.eval()


def save_adapter(base: Path, directory: Path, **changes: Any) -> Any:
    """Save an adapter of the base as PEFT does. Returns the base with it merged in; the rest as for `adapted`."""
    model = adapted(base, **changes)
    model.save_pretrained(directory)
    return model.merge_and_unload()


def publish_adapter(settings: Settings, name: str, directory: Path, *, parent: str = "") -> Bundle:
    meta = BundleMeta(name=name, task="text-generation", metrics={}, lineage=Lineage(parent=parent))
    return publish_bundle(settings, directory, meta)


def register_adapter(settings: Settings, name: str, directory: Path, *, parent: str = "") -> ModelVersion:
    registry = Registry(settings)
    version = registry.register(publish_adapter(settings, name, directory, parent=parent))
    registry.set_alias(version, "champion")
    return registry.resolve(version.reference)
