"""Specs of small training runs, over the datasets of `datasets.py`."""

from maas_ray.data.dataset import PreparedDataset
from maas_ray.training.spec import TrainSpec


def text_spec(dataset: PreparedDataset, model: str, **changes: object) -> TrainSpec:
    fields = {
        "dataset": dataset.uri,
        "model": model,
        "network": {"type": "llama", "hidden_size": 64, "layers": 2, "heads": 2},
        "workers": 2,
        "cpus_per_worker": 0.5,
        "batch_size": 16,
        "max_steps": 40,
        "learning_rate": 3e-3,
        "checkpoint": {"every_steps": 20},
    }
    return TrainSpec.parse(fields | changes)


def digits_spec(dataset: PreparedDataset, model: str, **changes: object) -> TrainSpec:
    fields = {
        "dataset": dataset.uri,
        "model": model,
        "network": {"type": "cnn", "channels": [16, 32], "hidden_size": 64},
        "cpus_per_worker": 0.5,
        "precision": "fp32",
        "batch_size": 32,
        "epochs": 4,
        "learning_rate": 3e-3,
        "checkpoint": {"every_steps": 1000},
    }
    return TrainSpec.parse(fields | changes)
