"""The train spec and the DeepSpeed document: filled, passed through, and never in contradiction."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maas_ray.errors import SpecError
from maas_ray.training.deepspeed.batch import batch_geometry, with_micro_batch
from maas_ray.training.deepspeed.check import check_with_deepspeed
from maas_ray.training.deepspeed.resolve import as_before, resolve
from maas_ray.training.deepspeed.sections import without_effect
from maas_ray.training.preflight import check_deepspeed, with_defaults
from maas_ray.training.runs.identity import identity_of
from maas_ray.training.spec import TrainSpec
from tests.support import ROOT
from tests.support.bundles import image_task, text_task
from tests.support.errors import raises

BASE = "dataset: d\nmodel: m\nnetwork: {type: llama, hidden_size: 64, heads: 2}\n"


def parse(text: str = "", **deepspeed) -> TrainSpec:
    document = f"deepspeed: {json.dumps(deepspeed)}\n" if deepspeed else ""
    return TrainSpec.from_text(BASE + document + text, source="train.yaml")


def filled(spec: TrainSpec, **changes):
    return resolve(
        spec, **{"workers": spec.max_workers, "total_steps": 1000, "hidden_size": 64, "on_cpu": True, **changes}
    )


def test_a_contradiction_is_reported_together_with_a_wrong_field():
    with pytest.raises(SpecError) as caught:
        parse("batch_size: 32\nepochs: 0\n", train_batch_size=64)
    wrong, contradiction = caught.value.problems
    assert wrong.startswith("line 6: epochs: ")
    assert contradiction.startswith("batch_size is 32, but deepspeed.train_batch_size is 64. Remove one, ")


def test_defaults_make_a_whole_configuration():
    config = filled(parse("workers: 2\nbatch_size: 32\n"))
    assert config["train_batch_size"] == 32
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 2
    assert config["bf16"] == {"enabled": True}
    assert config["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01, "torch_adam": True},
    }
    assert config["scheduler"]["params"]["total_num_steps"] == 1000
    assert config["scheduler"]["params"]["warmup_num_steps"] == 30
    assert "auto" not in json.dumps(config)


def test_a_document_as_the_hugging_face_documentation_writes_it():
    document = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": "auto",
                "warmup_max_lr": "auto",
                "warmup_num_steps": "auto",
                "total_num_steps": "auto",
            },
        },
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    config = filled(parse("precision: bf16\nlearning_rate: 3e-4\nwarmup_steps: 7\n", **document), on_cpu=False)
    assert config["bf16"]["enabled"] is True
    assert config["fp16"]["enabled"] is False
    assert config["zero_optimization"]["reduce_bucket_size"] == 64 * 64
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert config["scheduler"]["params"] == {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 3e-4,
        "warmup_num_steps": 7,
        "total_num_steps": 1000,
    }
    assert config["optimizer"]["params"]["fused"] is True


def test_blocks_of_the_document_that_the_platform_does_not_know_pass_through():
    config = filled(parse(activation_checkpointing={"partition_activations": True}, zero_optimization={"stage": 2}))
    assert config["activation_checkpointing"] == {"partition_activations": True}
    assert config["zero_optimization"] == {"stage": 2}


def test_numbers_of_the_document_take_precedence_over_defaults():
    spec = parse("workers: 2\n", train_micro_batch_size_per_gpu=2, gradient_accumulation_steps=3)
    assert batch_geometry(spec, 2) == (12, 2, 3)
    config = filled(parse(optimizer={"type": "Adam", "params": {"lr": 0.5}}))
    assert config["optimizer"]["params"]["lr"] == 0.5


@pytest.mark.parametrize(("workers", "passes"), [(1, 4), (2, 2), (3, 2), (4, 1), (5, 1), (8, 1)])
def test_the_rows_of_a_step_stay_and_passes_follow_the_number_of_workers(workers: int, passes: int):
    spec = parse("workers: [1, 8]\nbatch_size: 32\nmicro_batch_size: 8\n")
    assert batch_geometry(spec, workers) == (32, 8, passes)
    config = filled(spec, workers=workers)
    assert config["train_batch_size"] == 8 * passes * workers >= 32
    assert (spec.min_workers, spec.max_workers) == (1, 8)


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


def test_the_document_may_be_a_file(tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert parse(f"deepspeed: {path}\n").deepspeed == {"zero_optimization": {"stage": 2}}
    path.write_text('{"zero_optimization": ')
    with raises(SpecError, "json_invalid", "deepspeed", path):
        parse(f"deepspeed: {path}\n")
    path.write_text("[1]")
    with raises(SpecError, "not_an_object", "deepspeed", path, "list"):
        parse(f"deepspeed: {path}\n")
    with raises(SpecError, "file_unreadable", "nowhere.json"):
        parse("deepspeed: nowhere.json\n")


def test_an_auto_that_nothing_fills_is_named():
    with raises(SpecError, "auto_unfilled", "deepspeed.zero_optimization.round_robin_gradients"):
        parse(zero_optimization={"stage": 1, "round_robin_gradients": "auto"})


DOCUMENTS = sorted((ROOT / "tests" / "data" / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_documents_as_people_have_them_work_unchanged(path: Path, on_cpu: bool):
    config = filled(parse(f"deepspeed: {path}\nworkers: 2\n"), on_cpu=on_cpu)
    assert "auto" not in json.dumps(config).replace("autotuning", "")
    check_with_deepspeed(config)
    # Written values stay.
    written = json.loads(path.read_text())
    for block, fields in written.items():
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if not isinstance(value, dict) and value != "auto":
                assert config[block][name] == value, f"{block}.{name}"


@pytest.mark.parametrize(
    ("name", "text", "bf16", "fp16"),
    [
        ("hugging-face-zero2", "", True, False),
        ("hugging-face-zero2", "precision: fp16\n", False, True),
        ("hugging-face-zero2", "precision: fp32\n", False, False),
        # It has no bf16 block to fill.
        ("hugging-face-zero3", "", True, False),
        ("hugging-face-zero3", "precision: bf16\n", True, False),
        ("hugging-face-zero3", "precision: fp16\n", None, True),
        ("llama-factory-z3", "", True, False),
        ("deepspeed-fp16", "", None, True),
        ("deepspeed-onecycle", "", False, None),
        ("deepspeed-monitored", "", True, None),
    ],
)
def test_the_number_format_is_the_documents_or_the_specs(name: str, text: str, bf16: bool | None, fp16: bool | None):
    (path,) = (path for path in DOCUMENTS if path.stem == name)
    config = filled(parse(f"deepspeed: {path}\n{text}"))
    assert (config.get("bf16", {}).get("enabled"), config.get("fp16", {}).get("enabled")) == (bf16, fp16)


def test_autos_of_a_large_model_are_what_hugging_face_makes_of_them():
    (path,) = (path for path in DOCUMENTS if path.stem == "hugging-face-zero3")
    spec = parse(f"deepspeed: {path}\nworkers: 4\nbatch_size: 64\nmicro_batch_size: 2\nlearning_rate: 2e-5\n")
    config = filled(spec, hidden_size=4096, total_steps=1000)
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096**2
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 4096**2)
    assert zero["stage3_param_persistence_threshold"] == 40960
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 2)
    assert config["gradient_accumulation_steps"] == 8
    assert config["gradient_clipping"] == 1.0
    assert config["scheduler"]["params"] == {
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 2e-5,
        "warmup_num_steps": 30,
        "total_num_steps": 1000,
    }


def test_values_of_the_spec_fill_parameters_that_the_document_omits():
    spec = parse(
        "learning_rate: 3e-4\nbetas: [0.8, 0.9]\nwarmup_steps: 5\n",
        optimizer={"type": "AdamW", "params": {"weight_decay": 0.1}},
        scheduler={"type": "WarmupDecayLR"},
    )
    config = filled(spec)
    assert config["optimizer"]["params"].items() >= {"lr": 3e-4, "betas": [0.8, 0.9], "weight_decay": 0.1}.items()
    assert "eps" not in config["optimizer"]["params"]
    assert config["scheduler"]["params"] == {"warmup_max_lr": 3e-4, "warmup_num_steps": 5, "total_num_steps": 1000}


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


def test_a_scheduler_without_a_learning_rate_leaves_it_to_the_optimizer():
    spec = parse("learning_rate: 0.1\nwarmup_steps: 5\n", scheduler={"type": "WarmupCosineLR"})
    config = filled(spec)
    assert config["optimizer"]["params"]["lr"] == 0.1
    assert "warmup_max_lr" not in config["scheduler"]["params"]
    spec = parse("learning_rate: 0.1\n", scheduler={"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.01}})
    assert filled(spec)["optimizer"]["params"]["lr"] == 0.1


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


def test_torchs_own_adam_is_used_since_deepspeeds_would_be_compiled():
    assert (
        filled(parse(), on_cpu=False)["optimizer"]["params"] | {"torch_adam": True, "fused": True}
        == (filled(parse(), on_cpu=False)["optimizer"]["params"])
    )
    assert "fused" not in filled(parse(), on_cpu=True)["optimizer"]["params"]
    written = {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}}
    assert filled(parse(**written), on_cpu=False)["optimizer"]["params"]["torch_adam"] is False
    offloaded = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    assert "torch_adam" not in filled(parse(**offloaded), on_cpu=False)["optimizer"]["params"]
    zenflow = {"zero_optimization": offloaded["zero_optimization"] | {"zenflow": {"topk_ratio": 0.1}}}
    assert "torch_adam" not in filled(parse(**zenflow), on_cpu=True)["optimizer"]["params"]


def test_bias_correction_of_deepspeeds_adam_is_taken():
    def params(corrects: bool) -> dict[str, Any]:
        document = {"optimizer": {"type": "Adam", "params": {"lr": 3e-5, "bias_correction": corrects}}}
        config = filled(parse(**document), on_cpu=False)
        check_with_deepspeed(config)
        return dict(config["optimizer"]["params"])

    assert "bias_correction" not in params(True)  # Torch's always corrects
    assert params(False) == {"lr": 3e-5, "bias_correction": False}


def test_a_resumed_run_keeps_the_adam_whose_state_its_checkpoint_holds():
    now = filled(parse(), on_cpu=False)
    before = {"optimizer": {"type": "AdamW", "params": {"lr": 9.0}}}  # as 0.2.0 wrote it on GPUs
    kept = as_before(now, before)["optimizer"]["params"]
    assert kept.keys() == {"lr", "betas", "eps", "weight_decay"}
    assert kept["lr"] == 1e-3
    assert as_before(now, now) == now
    assert as_before(now, {}) == now


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
    used = {"prescale_gradients": False, "data_types": {"grad_accum_dtype": "fp32"}, "comms_logger": {"enabled": False}}
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
    ],
)
def test_an_optimizer_or_a_scheduler_that_cannot_be_made_is_refused(document: dict[str, object], named: str):
    with raises(SpecError, "deepspeed_refused", named):
        check_with_deepspeed(filled(parse(**document)))


def test_optimizers_and_schedulers_of_torch_are_taken():
    document = {
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "scheduler": {"type": "StepLR", "params": {"step_size": 3}},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1},
    }
    check_with_deepspeed(filled(parse(**document)))


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
        check_with_deepspeed(filled(parse(scheduler=scheduler)), 30)


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_the_default_schedule_is_taken_for_any_number_of_steps(steps: int):
    check_with_deepspeed(filled(parse(), total_steps=steps), steps)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_fails_in_its_first_step_is_refused(name: str):
    document = {"optimizer": {"type": name, "params": {"lr": 0.1}}, "zero_allow_untested_optimizer": True}
    with raises(SpecError, "deepspeed_refused", name):
        check_with_deepspeed(filled(parse(**document)))


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
