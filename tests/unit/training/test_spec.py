"""The train spec: contradictions with the DeepSpeed document, the identity of a run, and defaults."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maas_ray.errors import SpecError
from maas_ray.training.deepspeed.batch import batch_geometry, with_micro_batch
from maas_ray.training.preflight import with_defaults
from maas_ray.training.runs.identity import identity_of
from maas_ray.training.spec import TrainSpec
from tests.support.bundles import image_task, text_task
from tests.support.errors import raises
from tests.support.train_specs import filled, parse


def test_a_contradiction_is_reported_together_with_a_wrong_field():
    with pytest.raises(SpecError) as caught:
        parse("batch_size: 32\nepochs: 0\n", train_batch_size=64)
    wrong, contradiction = caught.value.problems
    assert wrong.startswith("line 6: epochs: ")
    assert contradiction.startswith("batch_size is 32, but deepspeed.train_batch_size is 64. Remove one, ")


@pytest.mark.parametrize(
    ("text", "document", "code", "values"),
    [
        (
            "batch_size: 16\n",
            {"train_batch_size": 32},
            "deepspeed_contradiction",
            ["batch_size", 16, "deepspeed.train_batch_size", 32],
        ),
        (
            "learning_rate: 0.1\n",
            {"optimizer": {"type": "Adam", "params": {"lr": 0.2}}},
            "deepspeed_contradiction",
            ["learning_rate", 0.1, "deepspeed.optimizer.params.lr", 0.2],
        ),
        (
            "precision: fp32\n",
            {"bf16": {"enabled": True}},
            "deepspeed_contradiction",
            ["precision", "fp32", "deepspeed.bf16.enabled", "true"],
        ),
        (
            "workers: 2\nbatch_size: 32\nmicro_batch_size: 4\n",
            {"gradient_accumulation_steps": 3},
            "batch_uneven",
            ["batch_size", 32, "2 workers", "4 rows", "3 passes", 24],
        ),
        ("workers: 8\nbatch_size: 4\n", {}, "batch_too_small", ["batch_size", "4 rows", "8 workers"]),
        ("workers: [4, 2]\n", {}, "range_reversed", ["workers", "[4, 2]"]),
    ],
)
def test_contradictions_are_refused_with_both_values(text, document, code, values):
    with raises(SpecError, code, *values):
        parse(text, **document)


def test_a_field_that_stands_twice_is_refused():
    with raises(SpecError, "duplicate_key", "network"):
        parse("network: {type: cnm}\n")


ONE_CYCLE = {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 0.2}}}


@pytest.mark.parametrize(
    ("text", "document", "code", "values"),
    [
        (
            "betas: [0.8, 0.9]\n",
            {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}},
            "deepspeed_unsupported",
            ["betas", (0.8, 0.9), "deepspeed.optimizer.type", "SGD"],
        ),
        (
            "warmup_steps: 5\n",
            ONE_CYCLE,
            "deepspeed_unsupported",
            ["warmup_steps", 5, "deepspeed.scheduler.type", "OneCycle"],
        ),
        (
            "learning_rate: 0.1\n",
            ONE_CYCLE,
            "deepspeed_contradiction",
            ["learning_rate", 0.1, "deepspeed.scheduler.params.cycle_max_lr", 0.2],
        ),
        (
            "precision: bf16\n",
            {"fp16": {"enabled": True}},
            "deepspeed_contradiction",
            ["precision", "bf16", "deepspeed.fp16.enabled", "true"],
        ),
    ],
)
def test_a_field_that_the_document_has_no_place_for_is_refused(text, document, code, values):
    with raises(SpecError, code, *values):
        parse(text, **document)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("", "ef7d0b65ecd5dfc8bb89142cbcaca5d4d06938f70de9b8d6effc998db224eb21"),
        ("workers: [2, 4]\nbatch_size: 48\n", "fe1b0d7e6637a5d7f0e8686ad21cba8de720beae876ae331255a1da4c4d21529"),
        (
            "deepspeed: {zero_optimization: {stage: 3}, train_micro_batch_size_per_gpu: 2, "
            "gradient_accumulation_steps: 3}\nmax_steps: 40\nearly_stopping: {patience: 2}\n"
            "validation: {every_steps: 50, place: workers}\ncheckpoint: {every_steps: 7, select: best}\n"
            "alias: champion\ngate: validation/loss < champion\nmicro_batch_size: 2\nlog_every_steps: 3\n",
            "aee88d0425ba3c3efbaef72ca492eb98df4737e74a675c1fdc44172efc6985f1",
        ),
    ],
)
def test_the_identity_of_a_run_is_the_one_that_version_0_1_recorded(text: str, identity: str):
    """Runs that were begun before weight decay spared parameters are found by it; new ones have another."""
    assert identity_of(parse(text), "fp", spares=False) == identity != identity_of(parse(text), "fp")


def test_the_default_learning_rate_follows_the_network(tmp_path: Path):
    """2e-5 is the rate of Hugging Face's examples of fine-tuning, such as `run_glue.py`'s."""
    given = {"dataset": "d", "model": "m", "network": {"type": "pretrained", "path": str(tmp_path)}}
    own = {"network": {"type": "llama", "hidden_size": 64, "heads": 2}}
    for fields, rate in ((given, 2e-5), (given | {"learning_rate": 1e-4}, 1e-4), (given | own, 1e-3)):
        spec = TrainSpec.parse(fields)
        assert spec.learning_rate == TrainSpec.parse(spec.document()).learning_rate == rate
        assert filled(spec)["optimizer"]["params"]["lr"] == rate
    # A default is not a value of the user's, which would have to agree with DeepSpeed's document.
    document = {"optimizer": {"type": "AdamW", "params": {"lr": 0.2}}}
    assert filled(TrainSpec.parse(given | {"deepspeed": document}))["optimizer"]["params"]["lr"] == 0.2


def test_the_last_validation_measures_the_rows_that_it_is_compared_on():
    spec = parse("validation: {max_rows: 100, max_rows_at_end: 100}\n")
    assert identity_of(spec, "fp") != identity_of(parse("validation: {max_rows: 100}\n"), "fp")
    for fields in ("{max_rows: 100, max_rows_at_end: 99}", "{max_rows: null, max_rows_at_end: 5000}"):
        with raises(SpecError, "range_reversed", "max_rows_at_end"):
            parse(f"validation: {fields}\n")


@pytest.mark.parametrize(
    ("fields", "tokens", "rows"),
    [
        ("batch_size: 64\n", 128, 64),  # 8192 tokens
        ("batch_size: 64\nworkers: 2\n", 128, 32),  # a worker's share
        ("batch_size: 64\n", 512, 16),
        ("batch_size: 48\n", 512, 16),  # the largest divisor of 48 up to 16
        ("batch_size: 64\n", 2048, 4),
        ("batch_size: 64\n", 100_000, 1),
        ("batch_size: 64\nmicro_batch_size: 2\n", 512, 2),
    ],
)
def test_the_default_rows_of_a_pass_follow_their_tokens(fields: str, tokens: int, rows: int):
    spec = with_micro_batch(parse(fields), tokens)
    assert filled(spec)["train_micro_batch_size_per_gpu"] == rows
    assert batch_geometry(spec, spec.max_workers).batch == parse(fields).batch_size


@pytest.mark.parametrize("written", ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
def test_rows_of_a_pass_that_the_document_decides_stay(written: str):
    spec = parse("batch_size: 64\n", **{written: 4})
    assert with_micro_batch(spec, 128) == spec


def test_only_rows_of_text_that_are_not_coupled_fill_a_pass_by_tokens():
    coupled = text_task(512)
    coupled.couples_rows = True  # type: ignore[misc]
    for task, rows in ((text_task(512), 16), (text_task(64), 64), (coupled, None), (image_task(), None)):
        dataset: Any = SimpleNamespace(task=task)
        assert with_defaults(parse("batch_size: 64\n"), dataset).micro_batch_size == rows
