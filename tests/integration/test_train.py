"""Training through Ray Train and DeepSpeed, to a registered version; and what is left when things die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError, SpecError
from maas_ray.evaluate.run import EvaluateSpec, evaluate
from maas_ray.registry.bundle import bundle_home, open_bundle
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.train.run import train
from maas_ray.train.spec import TrainSpec
from tests.datasets import digits_dataset, text_dataset

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

    # What MLflow's own client sees.
    client = Registry(settings).client
    run = client.get_run(version.lineage.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.hidden_size"] == "64"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [10, 20, 30, 40]
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    assert client.get_model_version_by_alias("whole", "champion").version == 1

    # What Transformers alone loads, and that it is what was measured.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = open_bundle(version.uri).fetch()
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    source = "def load(fp):\n    return fp.read()\n"
    assert tokenizer(source)["input_ids"] == text.task.encode([{"text": source}])["input_ids"][0][:-1].tolist()
    (rows,) = text.read(text.row_groups("validation")[:1])
    with torch.inference_mode():
        sums = text.task.measure(model, text.task.collate(rows))
    assert text.task.summarise(sums)["loss"] == pytest.approx(version.metrics["validation/loss"], abs=0.3)
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


def _train_workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(
    settings: Settings, text: PreparedDataset, capsys
):
    spec = text_spec(text, "killed", max_steps=120, epochs=9)
    home = Path(settings.storage) / "runs" / "killed"
    killed = threading.Event()

    def kill_one() -> None:
        while not list(home.glob("*/checkpoint_manager_snapshot.json")):
            time.sleep(0.2)
        _train_workers()[-1].kill()
        killed.set()

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    version = train(spec, settings=settings)
    assert killed.is_set()
    said = capsys.readouterr().out
    assert "resumed from the checkpoint at step" in said
    client = Registry(settings).client
    steps = {metric.step for metric in client.get_metric_history(version.lineage.run_id, "train/loss")}
    assert steps == set(range(10, 121, 10))


DRIVER = """
import os, signal, sys
from maas_ray import storage
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.train.run import train
from maas_ray.train.spec import TrainSpec

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
import json
print(train(TrainSpec.parse(json.loads(sys.argv[1])), settings=Settings.from_environment()).reference)
"""


def test_a_driver_killed_at_the_end_of_a_run_leaves_no_version_or_a_whole_one(
    settings: Settings, text: PreparedDataset
):
    spec = text_spec(text, "transaction", alias="champion", workers=1, max_steps=5)
    fields = spec.model_dump(mode="json", exclude_unset=True)
    registry = Registry(settings)

    def drive(where: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(fields), where]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)

    for where in ("upload", "manifest", "register"):
        assert drive(where).returncode == -signal.SIGKILL, where
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
