"""The DeepSpeed document is filled with the spec's values and with defaults; all else passes through."""

import json
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import SpecError
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.deepspeed.check import check_with_deepspeed
from maas_ray.training.deepspeed.resolve import as_before
from tests.support import ROOT
from tests.support.errors import raises
from tests.support.train_specs import filled, parse


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


def test_a_scheduler_without_a_learning_rate_leaves_it_to_the_optimizer():
    spec = parse("learning_rate: 0.1\nwarmup_steps: 5\n", scheduler={"type": "WarmupCosineLR"})
    config = filled(spec)
    assert config["optimizer"]["params"]["lr"] == 0.1
    assert "warmup_max_lr" not in config["scheduler"]["params"]
    spec = parse("learning_rate: 0.1\n", scheduler={"type": "LRRangeTest", "params": {"lr_range_test_min_lr": 0.01}})
    assert filled(spec)["optimizer"]["params"]["lr"] == 0.1


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
