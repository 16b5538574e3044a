"""The feed where training has taken every CPU."""

import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.settings import Settings
from maas_ray.training.feed import batches
from maas_ray.training.plan import Plan
from tests.support.datasets import digits_dataset

pytestmark = pytest.mark.usefixtures("cluster")


def test_workers_that_hold_every_cpu_are_fed(settings: Settings):
    import ray

    dataset = digits_dataset(settings, "taken")
    plan = Plan(sizes=dataset.group_sizes("train"), batch_size=64, lanes=1, epochs=1, seed=0, max_steps=None)

    @ray.remote(num_cpus=ray.available_resources()["CPU"])
    def rows(dataset: PreparedDataset, plan: Plan) -> int:
        return sum(len(batch["index"]) for batch in batches(dataset, plan, rank=0, workers=1, start_step=0))

    assert ray.get(rows.remote(dataset, plan), timeout=180) == dataset.split("train").rows
