"""Ten kills at random moments in one run, whose number of workers changes; then it is compared with a calm one."""

import random
import threading
import time

import numpy as np
import pytest

from maas_ray.errors import TrainingError
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.train.run import train
from maas_ray.train.spec import TrainSpec
from tests.datasets import text_dataset
from tests.processes import train_workers

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.soak, pytest.mark.timeout(3000)]
KILLS = 10


def _kill_soon(rng: random.Random) -> threading.Event:
    """Kill one training worker at a random moment after it has begun; the event says it is done."""
    killed = threading.Event()

    def kill() -> None:
        while not killed.is_set():
            if train_workers():
                time.sleep(rng.uniform(5, 25))
                if workers := train_workers():
                    rng.choice(workers).kill()
                    killed.set()
            time.sleep(0.1)

    threading.Thread(target=kill, daemon=True).start()
    return killed


def test_ten_kills_and_other_numbers_of_workers_change_nothing(settings: Settings, capsys):
    rng = random.Random(7)
    dataset = text_dataset(settings, "soak")

    def spec(model: str, workers: int) -> TrainSpec:
        return TrainSpec.parse(
            {
                "dataset": dataset.uri,
                "model": model,
                "network": {"type": "llama", "hidden_size": 64, "layers": 2, "heads": 2},
                "workers": workers,
                "cpus_per_worker": 0.5,
                "precision": "fp32",
                "batch_size": 16,
                "epochs": 8,
                "learning_rate": 3e-3,
                "checkpoint": {"every_steps": 25},
                "validation": {"every_steps": 100_000},
                "log_every_steps": 1,
                "max_failures": 0,
            }
        )

    kills = 0
    version = None
    while version is None:
        killed = _kill_soon(rng) if kills < KILLS else threading.Event()
        try:
            version = train(spec("soaked", rng.choice([1, 2, 3])), settings=settings)
        except TrainingError:
            assert killed.is_set()
            kills += 1
        killed.set()
    calm = train(spec("soak-calm", 2), settings=settings)
    assert kills == KILLS
    said = capsys.readouterr().out
    assert said.count(f"{8 * dataset.split('train').rows:,} rows trained on, each of them once in an epoch") == 2
    client = Registry(settings).client
    losses = [
        [
            value
            for _, value in sorted(
                {m.step: m.value for m in client.get_metric_history(one.lineage.run_id, "train/loss")}.items()
            )
        ]
        for one in (version, calm)
    ]
    # Sums in another order differ in the last bits, and a thousand steps carry that on.
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
