"""A dry run of `train`: the checks of the verb, and what it would do, without a cluster and without a trace."""

from pathlib import Path

import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NotFoundError, SpecError
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.settings import Settings
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.snapshot import Snapshot
from maas_ray.training.dry_run import dry_run
from maas_ray.training.runs.record import open_run
from maas_ray.training.spec import TrainSpec
from tests.support.bundles import save_bundle
from tests.support.datasets import digits_dataset
from tests.support.errors import raises


@pytest.fixture
def dataset(settings: Settings) -> PreparedDataset:
    return digits_dataset(settings, "digits")


def spec_of(dataset: PreparedDataset, **changes: object) -> TrainSpec:
    fields = {"dataset": dataset.uri, "model": "m", "network": {"type": "cnn"}, "run": "it", "workers": [2, 4]}
    return TrainSpec.parse(fields | changes)


def text_of(spec: TrainSpec, settings: Settings) -> str:
    return "\n".join(dry_run(spec, settings=settings))


def test_it_says_what_would_be_computed(settings: Settings, dataset: PreparedDataset):
    spec = spec_of(dataset, batch_size=64, epochs=2, alias="champion", gate="validation/loss <= champion")
    text = text_of(spec, settings)
    rows = dataset.split("train").rows
    assert dataset.fingerprint in text
    assert f"{rows:,} rows for train" in text
    assert f"{-(-2 * rows // 64)} of 64 rows" in text
    assert "2 to 4 workers" in text
    assert "2 × 8 rows a pass × 4 passes or 4 × 8 rows a pass × 2 passes; bf16, ZeRO stage 1" in text
    assert "optimizer: AdamW, learning rate 0.001, weight decay 0.01" in text
    assert "run it: would start" in text
    assert "alias champion would move to it if validation/loss <= champion" in text
    assert not (Path(settings.home) / "mlflow.db").exists(), "a dry run leaves no trace"


def test_it_says_where_a_run_would_go_on(settings: Settings, dataset: PreparedDataset):
    import tempfile

    spec = spec_of(dataset)
    run = open_run(spec, dataset, settings)
    assert "would start again" in text_of(spec, settings)
    for step, ended in ((20, ""), (40, "every step is done")):
        position = Position(step=step, workers=1, ended=ended)
        uri = f"{run.home}/step-{step:08d}-abc123"
        Snapshot(0, position, {}, tempfile.TemporaryDirectory()).write(uri)
        assert f"step {step}" in text_of(spec, settings)
    assert "trained to the end at step 40" in text_of(spec, settings)
    lineage = Lineage(run_id=run.run_id)
    meta = BundleMeta(name="m", task=dataset.task.spec.type, metrics={}, lineage=lineage)
    run.registry.register(publish_bundle(settings, save_bundle(dataset.task, Path(settings.home) / "b"), meta))
    assert "would be reused; it ended as m/1" in text_of(spec, settings)


def test_it_refuses_what_the_verb_refuses(settings: Settings, dataset: PreparedDataset):
    with raises(SpecError, "network_unsuitable", "llama", "image-classification"):
        dry_run(spec_of(dataset, network={"type": "llama"}), settings=settings)
    with raises(SpecError, "deepspeed_unknown_field", "zero_optimisation"):
        dry_run(spec_of(dataset, deepspeed={"zero_optimisation": {"stage": 2}}), settings=settings)
    with pytest.raises(NotFoundError):
        dry_run(spec_of(dataset).model_copy(update={"dataset": "nowhere"}), settings=settings)
    open_run(spec_of(dataset), dataset, settings)
    with raises(SpecError, "run_differs", "run", "'it'"):
        dry_run(spec_of(dataset, learning_rate=0.5), settings=settings)
