"""Small model bundles made without training: what serving needs of a model, in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from maas_ray.registry.bundle import Bundle, BundleMeta, Lineage, publish_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from maas_ray.tasks.tables.forecasting import TimeSeriesForecastingSpec
from maas_ray.tasks.tables.regression import TabularRegressionSpec
from maas_ray.tasks.text.generation import TextGenerationSpec
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.text.tokenization import FittedTokenizer
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.tasks.vision.networks import Cnn

TEXT = [
    "def add(a, b):\n    return a + b\n",
    "for name in sorted(names):\n    print(name)\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n",
    "Grüße aus Köln, 東京 und 🙂🚀!\n",
]


def text_task(sequence_length: int = 128) -> Task:
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=320), sequence_length=sequence_length)
    return spec.fit([{"text": text} for text in TEXT])


def image_task(labels: tuple[str, ...] = ("dark", "light"), size: int = 8) -> Task:
    shades = np.linspace(20, 230, len(labels)).astype(np.uint8)
    rows = [
        {"image": np.full((size, size, 1), shade, np.uint8), "label": label}
        for shade, label in zip(shades, labels, strict=True)
    ]
    return ImageClassificationSpec().fit(rows)


def table_task() -> Task:
    spec = TabularRegressionSpec(target="price")
    rows = [{"area": 70.0, "town": "Köln"}, {"area": 90.0, "town": "Bonn"}, {"area": None, "town": None}]
    return spec.fit([{"features": row, "target": 100.0 * place} for place, row in enumerate(rows)])


def series_task() -> Task:
    spec = TimeSeriesForecastingSpec(target="sales", covariates=("price",), context_length=3, horizon=2)
    row = spec.parse_row({"sales": list(range(9)), "price": [1.5, 2.5, 3.5] * 3})
    return spec.fit([row] if row else [])


def save_bundle(task: Task, directory: Path, *, seed: int = 0, hidden_size: int = 32) -> Path:
    """A bundle's files, with random weights that depend on the seed alone."""
    import torch
    from safetensors.torch import save_file

    network = (
        Llama(hidden_size=hidden_size, layers=2, heads=2)
        if task.kind == "generate"
        else Cnn(channels=(8,), hidden_size=8)
    )
    torch.manual_seed(seed)
    module = network.build(task).eval()
    directory.mkdir(parents=True, exist_ok=True)
    task.save(directory)
    network.write_config(module, task, directory)
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    if "lm_head.weight" in state and module.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def publish(
    settings: Settings, name: str, task: Task, directory: Path, *, config: dict[str, Any] | None = None, **changes: Any
) -> Bundle:
    """Publish a bundle; `config` is laid over its `config.json`. The rest as for `save_bundle`."""
    save_bundle(task, directory, **changes)
    if config:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return publish_saved(settings, name, task, directory)


def publish_saved(settings: Settings, name: str, task: Task, directory: Path) -> Bundle:
    """Publish the bundle's files that lie in a directory."""
    meta = BundleMeta(name=name, task=task.spec.type, metrics={"validation/loss": 1.0}, lineage=Lineage())
    return publish_bundle(settings, directory, meta)


def register(
    settings: Settings, name: str, task: Task, directory: Path, *, alias: str | None = "champion", **changes: Any
) -> ModelVersion:
    """Register a bundle; the rest as for `publish`."""
    registry = Registry(settings)
    version = registry.register(publish(settings, name, task, directory, **changes))
    if alias:
        registry.set_alias(version, alias)
    return registry.resolve(version.reference)
