"""A document that DeepSpeed refuses, ignores or fails with is refused before workers start."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maas_ray.errors import SpecError
from maas_ray.training.deepspeed.check import check_with_deepspeed
from maas_ray.training.deepspeed.sections import without_effect
from maas_ray.training.preflight import check_deepspeed
from tests.support.errors import raises
from tests.support.train_specs import filled, parse


def test_a_configuration_that_deepspeed_refuses_is_refused_before_workers_start():
    with raises(SpecError, "deepspeed_refused", "compression library has been removed"):  # DeepSpeed's own words
        check_with_deepspeed(filled(parse(compression_training={"weight_quantization": {}})))
    with raises(SpecError, "deepspeed_unknown_field", "deepspeed.zero_optimisation", "`zero_optimization`"):
        check_with_deepspeed(filled(parse(zero_optimisation={"stage": 2})))
    # Both sections hold the value; only fp16 has the field.
    with raises(SpecError, "deepspeed_refused", "deepspeed.bf16.hysteresis is 2"):
        check_with_deepspeed(filled(parse(fp16={"enabled": False, "hysteresis": 2}, bf16={"hysteresis": 2})))
    with raises(SpecError, "deepspeed_refused", "deepspeed.zero_optimization.offload_optimizer.device", "gpu"):
        check_with_deepspeed(filled(parse(zero_optimization={"offload_optimizer": {"device": "gpu"}})))


def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path: Path):
    path = tmp_path / "twice.json"
    path.write_text(
        '{"train_batch_size": "auto", "zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 3}}'
    )
    with raises(SpecError, "duplicate_key", path, "zero_optimization"):
        parse(f"deepspeed: {path}\n")
    path.write_text('{"optimizer": {"type": "Adam", "params": {"lr": 1, "lr": 2}}}')
    with raises(SpecError, "duplicate_key", path, "lr"):
        parse(f"deepspeed: {path}\n")


@pytest.mark.parametrize("value", [None, True, 2, "x", []])
@pytest.mark.parametrize("name", ["optimizer", "scheduler", "zero_optimization", "bf16", "fp16", "tensorboard"])
def test_a_section_that_is_not_an_object_is_refused(name: str, value: object):
    with raises(SpecError, "not_an_object", f"deepspeed.{name}"):
        parse(**{name: value})


@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
def test_a_section_that_deepspeed_would_ignore_is_refused(name: str):
    with raises(SpecError, "missing_field", f"deepspeed.{name}", "type"):
        parse(**{name: {"params": {}}})


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
        ({"sequence_parallel_size": 2, "data_parallel_size": 1}, "data_parallel_size"),
        ({"progressive_layer_drop": {"enabled": True, "theta": 0.5}}, "progressive_layer_drop.enabled"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning.enabled"),
        ({"amp": {"enabled": True}}, "amp.enabled"),
        ({"zero_optimization": {"stage": 1, "legacy_stage1": True}}, "zero_optimization.legacy_stage1"),
        ({"checkpoint": {"writer": {"type": "fast"}}}, "checkpoint.writer"),
    ],
)
def test_sections_that_networks_here_cannot_follow_are_refused(document: dict[str, object], named: str):
    with raises(SpecError, "deepspeed_unsupported", named):
        parse(**document)


def test_sections_that_change_nothing_are_taken():
    check_with_deepspeed(filled(parse(sequence_parallel_size=1, tensor_parallel={"autotp_size": 0})))


def test_sections_without_effect_are_named():
    named = without_effect({"data_efficiency": {"enabled": True}, "activation_checkpointing": {}, "bf16": {}})
    assert [line.split()[0] for line in named] == ["deepspeed.data_efficiency", "deepspeed.activation_checkpointing"]
    # Public documents have these: a comment, and fields of other programs.
    document: dict[str, Any] = {"_comment": "ours", "log": {"steps_per_print": 1}, "gradient_checkpointing": True}
    used: dict[str, Any] = {"zero_optimization": {"stage": 1}}
    used |= {
        "prescale_gradients": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "comms_logger": {"enabled": False},
    }
    unread = check_with_deepspeed(filled(parse(**document, **used)))
    assert [line.split()[0] for line in without_effect(document | used, unread)] == [
        "deepspeed.log",
        "deepspeed.gradient_checkpointing",
    ]


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"gradient_accumulation_steps": "8"}, "gradient_accumulation_steps is '8'"),
        ({"train_batch_size": 16.0}, "train_batch_size is 16.0"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu is 0"),
        ({"fp16": {"enabled": "true"}}, "fp16.enabled is 'true'"),
        ({"zero_optimization": {"stage": "2"}}, "zero_optimization.stage is '2'"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "1e-4"}}}, "optimizer.params.lr is '1e-4'"),
    ],
)
def test_values_of_another_type_are_refused(document: dict[str, object], named: str):
    with raises(SpecError, "deepspeed_refused", f"deepspeed.{named}"):
        parse(**document)


UNSHARDED = {"zero_optimization": {"stage": 0}}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}}, "warmup_num_steps"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warm_up_steps": 9}}}, "warm_up_steps"),
        ({"scheduler": {"type": "CosineAnnealing", "params": {}}}, "CosineAnnealing"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "beta1": 0.9}}}, "beta1"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "max_grad_norm": 1.0}}}, "gradient_clipping"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 1.5]}}}, "1.5"),
        ({"optimizer": {"type": "Adamm", "params": {"lr": 1e-3}}}, "Adamm"),
        ({"optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-3}}}, "Choose one of adagrad, adam"),
        ({"optimizer": {"type": "Lamb", "params": {"lr": 1e-3, "freeze_step": 10}}}, "freeze_step is 10"),
        ({"optimizer": {"type": "MuAdam", "params": {"lr": 1e-3}}}, "pip install mup"),
        (
            {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}, "zero_optimization": {"stage": 1}},
            "untested_optimizer",
        ),
        ({"optimizer": {"type": "Adagrad", "params": {"lr": 0.1}}}, "Adagrad"),
        ({"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, **UNSHARDED}, "grad_accum_dtype"),
    ],
)
def test_an_optimizer_or_a_scheduler_that_cannot_be_made_is_refused(document: dict[str, object], named: str):
    with raises(SpecError, "deepspeed_refused", named):
        check_with_deepspeed(filled(parse(**document)))


def test_adagrad_is_taken_where_deepspeed_keeps_the_parameters_that_it_was_made_for():
    document = {"optimizer": {"type": "Adagrad", "params": {"lr": 0.1}}}
    check_with_deepspeed(filled(parse("precision: fp32\n", **document, **UNSHARDED)))
    offloaded = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    check_with_deepspeed(filled(parse(**document, **offloaded)))


def test_optimizers_and_schedulers_of_torch_are_taken():
    document = {
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"type": "StepLR", "params": {"step_size": 3}},
        **UNSHARDED,
    }
    check_with_deepspeed(filled(parse("precision: fp32\n", **document)))


@pytest.mark.parametrize("fields", ["precision: fp32\n", "precision: bf16\n"])
def test_a_scheduler_of_torch_is_refused_where_deepspeed_wraps_the_optimizer(fields: str):
    document = {"scheduler": {"type": "StepLR", "params": {"step_size": 3}}}
    stage = {"zero_optimization": {"stage": 1 if "fp32" in fields else 0}}
    with raises(SpecError, "deepspeed_refused", "StepLR", "WarmupLR"):
        check_with_deepspeed(filled(parse(fields, **document, **stage)))


def test_a_schedule_that_ends_before_the_run_is_refused():
    params = {"total_num_steps": 500, "warmup_num_steps": 10}
    spec = parse(scheduler={"type": "WarmupDecayLR", "params": params})
    check_deepspeed(spec, SimpleNamespace(total_steps=500))  # type: ignore[arg-type]
    with raises(SpecError, "schedule_too_short", "500", "501"):
        check_deepspeed(spec, SimpleNamespace(total_steps=501))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        ({"type": "OneCycleLR", "params": {"max_lr": 0.1, "total_steps": 20}}, "21 times"),  # Torch's own words
        ({"type": "PolynomialLR", "params": {"total_iters": 20}}, "0 from step 21 on"),
        ({"type": "WarmupLR", "params": {"warmup_max_lr": 0}}, "0 from step 1 on"),
        ({"type": "ReduceLROnPlateau", "params": {}}, "metrics"),
    ],
)
def test_a_schedule_that_fails_or_ends_in_a_step_of_the_run_is_refused(scheduler: dict[str, object], named: str):
    with raises(SpecError, "deepspeed_refused", scheduler["type"], named):
        check_with_deepspeed(filled(parse("precision: fp32\n", scheduler=scheduler, **UNSHARDED)), 30)


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_the_default_schedule_is_taken_for_any_number_of_steps(steps: int):
    check_with_deepspeed(filled(parse(), total_steps=steps), steps)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_fails_in_its_first_step_is_refused(name: str):
    document = {"optimizer": {"type": name, "params": {"lr": 0.1}}, "zero_allow_untested_optimizer": True}
    with raises(SpecError, "deepspeed_refused", name):
        check_with_deepspeed(filled(parse(**document)))
