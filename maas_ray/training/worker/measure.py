"""Validation in the workers: metrics over a split, shared among the ranks."""

from typing import Any

from maas_ray.data.dataset import PreparedDataset
from maas_ray.tasks.base import Outcomes, joined
from maas_ray.training.collectives import from_first_rank
from maas_ray.training.worker.batches import Batch, Batches
from maas_ray.training.worker.job import Rank


def measure(
    engine: Any, dataset: PreparedDataset, batches: Batches, rank: Rank, split: str, limit: int | None
) -> dict[str, float]:
    """Metrics over a split, or over its first `limit` rows. All ranks call it together.

    Under ZeRO 3 a forward pass is collective, so every rank makes the same number of them. A rank that has run out
    of rows repeats its last batch without counting it.
    """
    import torch

    task, micro_batch = dataset.task, engine.train_micro_batch_size_per_gpu()
    rows = min(dataset.split(split).rows, limit or 1 << 62)
    share = -(-rows // rank.world)
    low, high = min(rank.rank * share, rows), min((rank.rank + 1) * share, rows)
    stored = dataset.batches(dataset.row_groups(split), micro_batch, low, high)
    outcomes: list[Outcomes] = []
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
    parts: list[Any] | None = [None] * rank.world if rank.rank == 0 else None
    torch.distributed.gather_object(joined(outcomes), parts)
    metrics: dict[str, float] = from_first_rank(task.metrics(joined(parts)) if parts else {})
    return metrics
