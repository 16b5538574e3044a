"""DeepSpeed's documents as people have them, each of them training; and the same seed giving the same run."""

import json

import numpy as np
import pytest

from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import NonFiniteLossError
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.training.run import train
from maas_ray.training.spec import TrainSpec
from tests.support import ROOT
from tests.support.errors import raises

pytestmark = pytest.mark.usefixtures("cluster")

DOCUMENTS = ROOT / "tests" / "data" / "deepspeed"


def text_spec(dataset: PreparedDataset, model: str, **changes: object) -> TrainSpec:
    fields = {
        "dataset": dataset.uri,
        "model": model,
        "network": {"type": "llama", "hidden_size": 64, "layers": 2, "heads": 2},
        "workers": 2,
        "cpus_per_worker": 0.5,
        "max_steps": 40,
        "checkpoint": {"every_steps": 1000},
        "log_every_steps": 1,
        "max_failures": 0,
    }
    return TrainSpec.parse(fields | changes)


def history(settings: Settings, version: ModelVersion, metric: str) -> list[float]:
    values = Registry(settings).client.get_metric_history(version.lineage.run_id, metric)
    return [value.value for value in sorted(values, key=lambda value: value.step)]


def fp16_works() -> bool:
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


@pytest.mark.parametrize(
    ("document", "precision"),
    [
        ("hugging-face-zero2", "bf16"),  # the optimizer on the CPU
        ("llama-factory-z3-offload", "bf16"),  # parameters too
        pytest.param("llama-factory-z0", "bf16", marks=pytest.mark.slow),
        ("deepspeed-onecycle", None),
        ("deepspeed-monitored", None),
    ],
)
def test_a_document_trains(
    settings: Settings, text: PreparedDataset, document: str, precision: str | None, capsys: pytest.CaptureFixture[str]
):
    changes = {"precision": precision, "learning_rate": 3e-3, "batch_size": 16} if precision else {"workers": 1}
    if "z3" in document:
        changes["network"] = {
            "type": "llama",
            "hidden_size": 64,
            "heads": 2,
            "layers": 2,
            "gradient_checkpointing": True,
        }
    spec = text_spec(text, document, deepspeed=str(DOCUMENTS / f"{document}.json"), **changes)
    version = train(spec, settings=settings)
    assert "auto" not in json.dumps(version.lineage.deepspeed).replace("autotuning", "")
    assert version.metrics["validation/loss"] < np.log(512) - (0.5 if precision else 0.01)
    assert ("gradient_checkpointing: true" in capsys.readouterr().out) == (document == "deepspeed-monitored")

    # The weights are those that the optimizer works on, in fp32, whatever the passes are in.
    import torch
    from safetensors.torch import load_file

    weights = load_file(open_bundle(version.uri).fetch() / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.parametrize("stage", [0, 2])
def test_a_step_that_overflows_in_fp16_is_taken_again(
    settings: Settings, text: PreparedDataset, stage: int, capsys: pytest.CaptureFixture[str]
):
    if not fp16_works():
        pytest.skip("this CPU does not compute in fp16")
    # 2³², so the first step is sure to overflow.
    document = json.loads((DOCUMENTS / "deepspeed-fp16.json").read_text()) | {"zero_optimization": {"stage": stage}}
    version = train(text_spec(text, f"fp16-{stage}", deepspeed=document), settings=settings)
    said = capsys.readouterr().out
    assert "step 1: gradients overflowed in fp16; taken again, loss scale 4.29497e+09 →" in said
    assert "640 rows trained on, each of them once in an epoch" in said
    assert version.metrics["validation/loss"] < np.log(512) - 0.3
    # No step of the schedule is lost. Step n of the warm-up has log(n + 1) / log(20) of the peak: 1 at step 19.
    rates = history(settings, version, "train/learning_rate")
    assert len(rates) == 40
    assert rates[17] == pytest.approx(1e-3 * np.log(19) / np.log(20))
    assert rates[18] == pytest.approx(1e-3)
    assert rates[-20:] == pytest.approx([1e-3] * 20)
    norms = history(settings, version, "train/gradient_norm")
    assert 0.1 < min(norms) <= max(norms) < 10


@pytest.mark.slow
def test_gradients_that_no_loss_scale_fits_stop_the_run(settings: Settings, digits: PreparedDataset):
    if not fp16_works():
        pytest.skip("this CPU does not compute in fp16")
    spec = TrainSpec.parse(
        {
            "dataset": digits.uri,
            "model": "fp16-diverges",
            "network": {"type": "cnn", "channels": [16], "hidden_size": 32},
            "cpus_per_worker": 0.5,
            "learning_rate": 1e4,
            "warmup_steps": 0,
            "gradient_clipping": 0,
            "deepspeed": {"fp16": {"enabled": True, "loss_scale": 0}, "zero_optimization": {"stage": 1}},
        }
    )
    with raises(NonFiniteLossError, "non_finite_loss") as caught:
        train(spec, settings=settings)
    assert "try precision: fp32" in str(caught.value)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_the_same_seed_gives_the_same_run_bit_for_bit(settings: Settings, digits: PreparedDataset, workers: int):
    def spec(run: str, seed: int) -> TrainSpec:
        return TrainSpec.parse(
            {
                "dataset": digits.uri,
                "model": f"same-{workers}",
                "run": f"{run}-{workers}",
                "network": {"type": "cnn", "channels": [16], "hidden_size": 32, "dropout": 0.3},
                "workers": workers,
                "cpus_per_worker": 0.5,
                "batch_size": 32,
                "max_steps": 60,
                "checkpoint": {"every_steps": 25},
                "validation": {"every_steps": 20},
                "seed": seed,
            }
        )

    first, second = (train(spec(run, seed=5), settings=settings) for run in ("first", "second"))
    assert first.reference != second.reference
    assert weights_of(first) == weights_of(second)
    assert first.metrics == second.metrics
    assert history(settings, first, "train/loss") == history(settings, second, "train/loss")


def weights_of(version: ModelVersion) -> dict[str, str]:
    """sha256 of a version's weights by file."""
    return {file.path: file.sha256 for file in open_bundle(version.uri).artifact.files if "safetensors" in file.path}
