"""Runs whose workers are killed, and that go on with other numbers of workers."""

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import TrainingError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.training.ray_train import launch
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec
from tests.support.processes import train_workers
from tests.support.recording import consumed, every_row_once, fed, recording
from tests.support.training import digits_spec, text_spec

pytestmark = pytest.mark.usefixtures("cluster")


def _kill_a_worker_at(home: Path, checkpoints: int, killed: threading.Event) -> None:
    """Wait until a run has so many whole checkpoints, then kill one of its workers."""

    def kill() -> None:
        while True:
            names = [name for name in home.glob("*/step-*") if (name / "rank-00000.json").exists()]
            if len(names) >= checkpoints and (workers := train_workers()):
                workers[-1].kill()
                killed.set()
                return
            time.sleep(0.1)

    threading.Thread(target=kill, daemon=True).start()


def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(
    settings: Settings, text: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(launch, "train_worker", recording(tmp_path))
    # 2,246 rows are 140 batches of 16 and 6 rows, the last step.
    spec = text_spec(text, "killed", max_steps=None, checkpoint={"every_steps": 40})
    killed = threading.Event()
    _kill_a_worker_at(Path(settings.storage) / "runs" / "killed", 1, killed)
    version = train(spec, settings=settings)
    assert killed.is_set()
    said = capsys.readouterr().out
    assert re.search(r"resumed from the checkpoint at step (40|80|120), on 2 workers", said)
    rows = text.split("train").rows
    assert rows % 16, "the last step is to be a short one"
    assert f"{rows:,} rows trained on, each of them once in an epoch" in said
    assert consumed(tmp_path) == every_row_once(rows)
    assert sum(len(line["rows"]) for line in fed(tmp_path)) > rows, "some steps were done again"
    client = Registry(settings).client
    steps = {metric.step for metric in client.get_metric_history(version.lineage.run_id, "train/loss")}
    assert steps == {*range(10, rows // 16 + 1, 10), rows // 16 + 1}
    # Two checkpoints are kept, the newest and the one before, and the best of them is among those.
    assert len(list((Path(settings.storage) / "runs" / "killed").glob("*/step-*"))) in (2, 3)


# Stage 2, below, resumes as stage 1 does.
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_goes_on_with_other_numbers_of_workers_as_if_nothing_had_happened(
    settings: Settings, text: PreparedDataset, stage: int, capsys
):
    def spec(model: str, workers: int) -> TrainSpec:
        return text_spec(
            text,
            model,
            workers=workers,
            precision="fp32",
            deepspeed={"zero_optimization": {"stage": stage}},
            # Neither 3 workers nor passes of 3 rows divide 16.
            micro_batch_size=3,
            max_steps=36,
            checkpoint={"every_steps": 12},
            validation={"every_steps": 1000},
            log_every_steps=1,
            max_failures=0,
        )

    calm = train(spec(f"calm-{stage}", 2), settings=settings)
    model = f"elastic-{stage}"
    for number, workers in enumerate((2, 1)):
        killed = threading.Event()
        _kill_a_worker_at(Path(settings.storage) / "runs" / model, number + 1, killed)
        with pytest.raises(TrainingError):
            train(spec(model, workers), settings=settings)
        assert killed.is_set()
    version = train(spec(model, 3), settings=settings)
    said = capsys.readouterr().out
    assert "made by 2 workers, on 1 worker" in said
    assert "made by 1 worker, on 3 workers" in said
    assert said.count("576 rows trained on, each of them once in an epoch") == 2
    np.testing.assert_allclose(_losses(settings, version), _losses(settings, calm), rtol=2e-3)
    assert version.metrics["test/loss"] == pytest.approx(calm.metrics["test/loss"], rel=2e-3)


@pytest.mark.slow
def test_without_sharded_parameters_too_a_run_goes_on_with_another_number_of_workers(
    settings: Settings, digits: PreparedDataset, capsys
):
    def spec(stage: int, model: str, workers: int) -> TrainSpec:
        return digits_spec(
            digits,
            model,
            workers=workers,
            network={"type": "cnn", "channels": [16], "hidden_size": 32, "dropout": 0},
            deepspeed={"zero_optimization": {"stage": stage}},
            epochs=3,
            checkpoint={"every_steps": 15},
            validation={"every_steps": 1000},
            log_every_steps=1,
            max_failures=0,
        )

    # In fp32 both stages compute the same. (A run that begins on one worker has its rows in another order.)
    calm = train(spec(2, "calm", 2), settings=settings)
    for stage in (0, 2):
        model = f"elastic-{stage}"
        killed = threading.Event()
        _kill_a_worker_at(Path(settings.storage) / "runs" / model, 1, killed)
        with pytest.raises(TrainingError):
            train(spec(stage, model, 2), settings=settings)
        assert killed.is_set()
        version = train(spec(stage, model, 1), settings=settings)
        assert "made by 2 workers, on 1 worker" in capsys.readouterr().out
        np.testing.assert_allclose(_losses(settings, version), _losses(settings, calm), rtol=2e-3, atol=1e-4)
        assert version.metrics["test/loss"] == pytest.approx(calm.metrics["test/loss"], rel=2e-2)


def _losses(settings: Settings, version: ModelVersion) -> list[float]:
    """By step; where a step was taken again, the last."""
    history = Registry(settings).client.get_metric_history(version.lineage.run_id, "train/loss")
    return [value for _, value in sorted({metric.step: metric.value for metric in history}.items())]
