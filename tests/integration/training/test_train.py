"""Training through Ray Train and DeepSpeed, to a registered version."""

from pathlib import Path

import numpy as np
import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError, SpecError
from maas_ray.evaluation.run import evaluate
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.training.run import train
from tests.support.errors import raises
from tests.support.training import digits_spec, text_spec

pytestmark = pytest.mark.usefixtures("cluster")


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

    # The alias stays where it was moved to, and another choice is answered from the checkpoints that the run kept.
    client.delete_registered_model_alias("whole", "champion")
    best = text_spec(text, "whole", alias="champion", checkpoint={"every_steps": 20, "select": "best"})
    again = train(best, settings=settings)
    assert (again.reference, again.aliases) == ("whole/1", ())  # the loss was the lowest at the end
    said = capsys.readouterr().out
    assert "trained to the end already" in said
    assert "maas alias whole 1 champion" in said
    client.set_registered_model_alias("whole", "champion", "1")

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
    with raises(SpecError, "network_unsuitable", "network.type", "'llama'", "image-classification", "cnn"):
        train(text_spec(digits, "wrong"), settings=settings)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_when(settings: Settings, digits: PreparedDataset):
    spec = digits_spec(digits, "diverges", learning_rate=1e30, gradient_clipping=0, warmup_steps=0)
    with raises(NonFiniteLossError, "non_finite_loss") as caught:
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
