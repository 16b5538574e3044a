"""A task that weighs rows, groups parameters and augments batches: the smallest one that uses each of these."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from maas_ray.tasks import Task

INPUTS = 4


class Weighing(Task):
    """Regression of `y` on `x` whose loss is a mean over tokens, `tokens` of them in each row.

    Args:
        noise: standard deviation of what augmentation adds to `x`.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.augmented: list[np.ndarray] = []

    def weights(self, rows: Any) -> np.ndarray:
        return rows["tokens"]

    def parameters(self, network: Any) -> list[dict[str, Any]]:
        """Vectors first, without weight decay: another order than the network's own."""
        parameters = list(network.parameters())
        return [
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": 0.5},
        ]

    def augment(self, batch: dict[str, Any], generator: Any) -> dict[str, Any]:
        import torch

        drawn = torch.randn(batch["x"].shape, generator=generator)
        self.augmented.append(drawn.numpy())
        return batch | {"x": batch["x"] + self.noise * drawn}

    def collate(self, batch: Any) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in ("x", "y", "tokens")}

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        tokens = batch["tokens"].float()
        parameter = next(iter(getattr(model, "module", model).parameters()))
        errors = (model(batch["x"].to(parameter.dtype))[:, 0].float() - batch["y"]) ** 2
        return (tokens * errors).sum() / tokens.sum().clamp(min=1)

    def outcomes(self, model: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"loss": np.array([float(self.loss(model, batch))] * len(batch["y"]))}

    def metrics(self, outcomes: Any) -> dict[str, float]:
        return {"loss": float(outcomes["loss"].mean())}


Weighing.__abstractmethods__ = frozenset()  # data preparation and serving, which no training step calls


class Perceptron:
    """A network's spec, as far as an engine needs it."""

    of_transformers = False

    def build(self, _: Task) -> Any:
        from torch import nn

        return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, 1))

    def skeleton(self, task: Task) -> Any:
        import torch

        with torch.device("meta"):
            return self.build(task)


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Stored rows; some have many tokens, some few, some none."""
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(count, INPUTS)).astype(np.float32)
    tokens = draws.choice([0, 1, 3, 40], count).astype(np.int64)
    return {"x": x, "y": x.sum(1) ** 2, "tokens": tokens, "index": np.arange(count)}


def dataset(task: Task, stored: dict[str, np.ndarray]) -> Any:
    """A prepared dataset of one row group, as far as workers read it."""

    def batches(_: Any, size: int, low: int, high: int) -> Any:
        for start in range(low, high, size):
            yield {name: values[start : min(start + size, high)] for name, values in stored.items()}

    return SimpleNamespace(
        task=task,
        read=lambda _: iter([stored]),
        row_group=lambda *_: None,
        row_groups=lambda _: [None],
        split=lambda _: SimpleNamespace(rows=len(stored["index"])),
        batches=batches,
    )
