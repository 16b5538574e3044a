"""The feed where training has taken every CPU."""

import numpy as np
import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.settings import Settings
from maas_ray.training import feed
from maas_ray.training.plan import Plan
from tests.support.datasets import digits_dataset

pytestmark = pytest.mark.usefixtures("cluster")


def test_workers_that_hold_every_cpu_are_fed(settings: Settings):
    import ray

    dataset = digits_dataset(settings, "taken")
    plan = Plan(sizes=dataset.group_sizes("train"), batch_size=64, lanes=1, epochs=1, seed=0, max_steps=None)

    reads = plan.reads(0, 1, 0, 1)
    assert len(reads) > 1  # the worker makes the first one by itself

    @ray.remote(num_cpus=ray.available_resources()["CPU"])
    def rows(dataset: PreparedDataset, plan: Plan) -> np.ndarray:
        feed._READ_BYTES = 1
        return np.concatenate([one["index"] for one in feed.batches(dataset, plan, rank=0, workers=1, start_step=0)])

    expected = np.concatenate([feed.rows_of(dataset, plan, 0, 1, *read)["index"] for read in reads])
    assert np.array_equal(ray.get(rows.remote(dataset, plan), timeout=180), expected)
    assert sorted(expected) == list(range(dataset.split("train").rows))
