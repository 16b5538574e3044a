"""Validation in the workers: metrics over a split, shared among the ranks."""

from collections import deque
from typing import Any, NamedTuple

from maas_ray.data.dataset import PreparedDataset
from maas_ray.tasks.base import Outcomes, joined
from maas_ray.training.collectives import from_first_rank, to_first_rank
from maas_ray.training.worker.batches import Batch, Batches
from maas_ray.training.worker.job import Rank


class Measured(NamedTuple):
    """Metrics over a split.

    Args:
        metrics: over all rows that were measured.
        first_loss: the loss over the first of them alone.
    """

    metrics: dict[str, float]
    first_loss: float


def measure(
    engine: Any,
    dataset: PreparedDataset,
    batches: Batches,
    rank: Rank,
    split: str,
    limit: int | None,
    *,
    first: int | None = None,
) -> Measured:
    """Metrics over a split, or over its first `limit` rows. All ranks call it together.

    Under ZeRO 3 a forward pass is collective, so every rank makes the same number of them. A rank that has run out
    of rows repeats its last batch without counting it.

    Args:
        engine: DeepSpeed's.
        dataset: the dataset.
        batches: makes batches of stored rows.
        rank: this worker.
        split: the split's name.
        limit: how many of its rows to measure. None: all.
        first: how many of them `first_loss` is over. None: all.
    """
    import torch

    task, micro_batch = dataset.task, engine.train_micro_batch_size_per_gpu()
    rows = min(dataset.split(split).rows, limit or 1 << 62)
    share = -(-rows // rank.world)
    low, high = min(rank.rank * share, rows), min((rank.rank + 1) * share, rows)
    stored = dataset.batches(dataset.row_groups(split), micro_batch, low, high)
    outcomes: deque[Outcomes] = deque()
    batch: Batch = {}
    engine.eval()
    with torch.no_grad():
        for _ in range(-(-share // micro_batch)):
            remaining = next(stored, None)
            if remaining is not None:
                batch = batches.of(remaining)
            result = task.outcomes(engine, batch or batches.any_row())
            if remaining is not None:
                outcomes.append(result)
    engine.train()
    parts = to_first_rank(outcomes)
    measured: Measured = from_first_rank(_measured(dataset, parts, first) if parts else None)
    return measured


def _measured(dataset: PreparedDataset, parts: list[Outcomes], first: int | None) -> Measured:
    outcomes = joined(parts)
    parts.clear()  # so that memory holds them once
    metrics = dataset.task.metrics(outcomes)
    if first is None or first >= len(outcomes["loss"]):
        return Measured(metrics, metrics["loss"])
    return Measured(metrics, dataset.task.metrics({name: rows[:first] for name, rows in outcomes.items()})["loss"])
