"""The training path of the integration tests, on GPUs: NCCL, bf16, DeepSpeed's own optimizer."""

import pytest

from maas_ray.evaluation.run import evaluate
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.settings import Settings
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec
from tests.support.datasets import text_dataset


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_on_gpus_ends_with_a_version_that_measures_the_same(settings: Settings, gpus: int, stage: int):
    dataset = text_dataset(settings, "code")
    spec = TrainSpec.parse(
        {
            "dataset": dataset.uri,
            "model": f"gpu-{stage}",
            "network": {"type": "llama", "hidden_size": 128, "layers": 2, "heads": 2},
            "deepspeed": {"zero_optimization": {"stage": stage}},
            "workers": gpus,
            "device": "gpu",
            "batch_size": 8 * gpus,
            "max_steps": 60,
            "learning_rate": 3e-3,
        }
    )
    version = train(spec, settings=settings)
    assert version.metrics["validation/loss"] < 5.5
    report = evaluate(EvaluateSpec(version=version.reference, gpus_per_worker=1), settings=settings)
    assert report.metrics["loss"] == pytest.approx(version.metrics["test/loss"], rel=0.02)
