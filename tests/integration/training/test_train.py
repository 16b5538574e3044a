"""Training through Ray Train and DeepSpeed, to a registered version; and what is left when things die."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError, SpecError, TrainingError
from maas_ray.evaluation.run import evaluate
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.registry.bundle import bundle_home, open_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.training.ray_train import launch
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec
from tests.support.datasets import digits_dataset, text_dataset
from tests.support.processes import train_workers
from tests.support.recording import consumed, every_row_once, fed, recording

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def text(settings: Settings) -> PreparedDataset:
    return text_dataset(settings, "code")


@pytest.fixture(scope="module")
def digits(settings: Settings) -> PreparedDataset:
    return digits_dataset(settings, "digits")


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


def test_a_run_ends_with_a_whole_version(settings: Settings, text: PreparedDataset, capsys):
    version = train(text_spec(text, "whole", alias="champion"), settings=settings)
    assert version.reference == "whole/1"
    assert version.aliases == ("champion",)
    assert version.metrics["validation/loss"] < np.log(512) - 1
    assert version.lineage.dataset_fingerprint == text.fingerprint
    assert version.lineage.spec["learning_rate"] == 3e-3
    assert version.lineage.deepspeed["bf16"] == {"enabled": True}

    # MLflow's own client sees the run.
    client = Registry(settings).client
    run = client.get_run(version.lineage.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.hidden_size"] == "64"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [10, 20, 30, 40]
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    assert client.get_model_version_by_alias("whole", "champion").version == 1

    # Transformers alone loads the bundle, and its loss is the one that was measured.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = open_bundle(version.uri).fetch()
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    source = "def load(fp):\n    return fp.read()\n"
    assert tokenizer(source)["input_ids"] == text.task.encode([{"text": source}])["input_ids"][0][:-1].tolist()
    (rows,) = text.read(text.row_groups("validation")[:1])
    with torch.inference_mode():
        outcomes = text.task.outcomes(model, text.task.collate(rows))
    assert text.task.metrics(outcomes)["loss"] == pytest.approx(version.metrics["validation/loss"], abs=0.3)
    assert "# whole" in (directory / "README.md").read_text()

    # The same again is the same version.
    capsys.readouterr()
    assert train(text_spec(text, "whole", alias="champion"), settings=settings).reference == "whole/1"
    assert "reusing it" in capsys.readouterr().out

    report = evaluate(EvaluateSpec(version="whole@champion", cpus_per_worker=0.5), settings=settings)
    assert report.metrics["loss"] == pytest.approx(version.metrics["test/loss"], rel=0.01)
    assert report.rows == text.split("test").rows


@pytest.mark.parametrize(("stage", "workers"), [(0, 1), (3, 2)])
def test_images_with_other_zero_stages(settings: Settings, digits: PreparedDataset, stage: int, workers: int):
    spec = digits_spec(digits, f"digits-{stage}", deepspeed={"zero_optimization": {"stage": stage}}, workers=workers)
    version = train(spec, settings=settings)
    assert version.metrics["test/accuracy"] > 0.9

    bundle = open_bundle(version.uri)
    directory = bundle.fetch()
    task = bundle.load_task(directory)
    model = task.load_model(directory)
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[:64] * 255 / 16).astype(np.uint8)[..., None]
    answer = task.predict(model, {"image": images})
    assert (answer["label"] == data.target[:64].astype(str)).mean() > 0.9
    np.testing.assert_allclose(answer["scores"].sum(axis=1), 1.0, rtol=1e-4)


def test_a_network_for_another_task_is_refused_before_anything_starts(settings: Settings, digits: PreparedDataset):
    with pytest.raises(SpecError, match=r"network.type: 'llama' cannot do image-classification; choose one of cnn"):
        train(text_spec(digits, "wrong"), settings=settings)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_when(settings: Settings, digits: PreparedDataset):
    spec = digits_spec(digits, "diverges", learning_rate=1e30, gradient_clipping=0, warmup_steps=0)
    with pytest.raises(NonFiniteLossError, match=r"at step \d+; training stopped") as caught:
        train(spec, settings=settings)
    assert 1 < caught.value.step <= 10
    assert "gradients are not clipped" in str(caught.value)
    assert Registry(settings).models().get("diverges", []) == []
    client = Registry(settings).client
    (run,) = client.search_runs([client.get_experiment_by_name("diverges").experiment_id])
    assert run.info.status == "FAILED"


def test_a_run_that_gets_no_better_ends_and_its_best_checkpoint_is_the_version(
    settings: Settings, digits: PreparedDataset, capsys
):
    def run(place: str) -> dict[int, float]:
        spec = digits_spec(
            digits,
            f"stops-{place}",
            # The loss falls while the rate rises, and then it climbs.
            learning_rate=0.5,
            warmup_steps=60,
            epochs=20,
            gradient_clipping=0,
            checkpoint={"every_steps": 15, "select": "best", "keep": 1},
            validation={"place": place},
            early_stopping={"patience": 2},
        )
        version = train(spec, settings=settings)
        said = capsys.readouterr().out
        assert "the validation loss was no lower 2 times" in said
        assert "the lowest validation loss was at step" in said
        client, run_id = Registry(settings).client, version.lineage.run_id
        losses = {metric.step: metric.value for metric in client.get_metric_history(run_id, "validation/loss")}
        assert version.metrics["validation/loss"] == min(losses.values())
        assert max(losses) < 20 * 44
        kept = (Path(settings.storage) / "runs" / f"stops-{place}").glob("*/step-*/validation.json")
        assert bool(list(kept)) == (place == "beside")
        return losses

    # The place of the validation changes neither its values nor the end of the run.
    beside, in_workers = run("beside"), run("workers")
    assert beside.keys() == in_workers.keys()
    np.testing.assert_allclose([beside[step] for step in in_workers], [*in_workers.values()], rtol=1e-3)


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


@pytest.mark.parametrize("stage", [1, 3])
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


DRIVER = """
import os, signal, sys, threading, time
from maas_ray import storage
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

where, calls = sys.argv[2], []
if where == "upload":
    upload = storage.upload
    def second(*args):
        calls.append(args)
        return die() if len(calls) == 3 else upload(*args)
    storage.upload = second
elif where == "manifest":
    storage.commit = die
elif where == "register":
    Registry.register = die
elif where == "alias":
    Registry.set_alias = die
elif where == "training":
    def watch():
        seen = set()
        while len(seen) < 4:
            seen |= {name for name in storage.list_directory(sys.argv[3]) if name.startswith("step-")}
            time.sleep(0.05)
        die()
    threading.Thread(target=watch, daemon=True).start()
import json
print(train(TrainSpec.parse(json.loads(sys.argv[1])), settings=Settings.from_environment()).reference)
"""


def test_a_driver_that_is_killed_is_started_again_and_leaves_no_version_or_a_whole_one(
    settings: Settings, text: PreparedDataset
):
    # By the time it is killed first, checkpoints have been deleted.
    checkpoints = {"every_steps": 5, "keep": 1}
    spec = text_spec(text, "transaction", run="it", alias="champion", workers=1, max_steps=100, checkpoint=checkpoints)
    home = storage.join(settings.storage, "runs", "transaction", "it")
    fields = spec.model_dump(mode="json", exclude_unset=True)
    registry = Registry(settings)

    def drive(where: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(fields), where, home]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)

    assert drive("training").returncode == -signal.SIGKILL
    for where in ("upload", "manifest", "register"):
        driven = drive(where)
        assert driven.returncode == -signal.SIGKILL, where
        assert ("resumed from the checkpoint at step" in driven.stdout) == (where == "upload"), driven.stdout
        assert registry.models().get("transaction", []) == [], where
    # Every file lies there, and only the manifest made it a bundle.
    homes = storage.list_directory(bundle_home(settings, "transaction"))
    assert len(homes) == 1
    assert drive("alias").returncode == -signal.SIGKILL
    (version,) = registry.versions("transaction")
    version.open().artifact.verify()
    assert version.aliases == ()
    done = drive("nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "transaction/1"
    (version,) = registry.versions("transaction")
    assert version.aliases == ("champion",)
    assert storage.list_directory(bundle_home(settings, "transaction")) == homes
