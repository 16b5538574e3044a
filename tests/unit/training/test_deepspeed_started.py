"""A document that the checks accept runs: each kind is started as an engine on the CPU, and takes two steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from maas_ray.errors import SpecError
from maas_ray.training.deepspeed.check import check_on_cpu, check_with_deepspeed
from maas_ray.training.preflight import check_without_gpus
from tests.support import ranks
from tests.support.errors import raises
from tests.support.train_specs import filled, parse

START = """
import gc, json, sys
from pathlib import Path
import numpy as np, torch
from maas_ray.training.deepspeed.engine import build_engine
from maas_ray.training.deepspeed.schedule import begin_schedule
from maas_ray.training.plan import Plan
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.step import Steps
from tests.support import weighing
from tests.unit.training.test_deepspeed_started import FIRST, STARTED, resolved

directory = Path(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
BATCH = 8
rank, task, stored = Rank(0, 0, 1, torch.device("cpu")), weighing.Weighing(), weighing.rows(2 * BATCH)
stored["tokens"][:] = 1


def weights(engine):
    return torch.cat([getattr(p, "ds_tensor", p).detach().float().flatten() for p in engine.module.parameters()])


def moved(document):
    engine = build_engine(weighing.Perceptron(), task, resolved(document), seed=0, rank=0, on_cpu=True)
    begin_schedule(engine)
    engine.train()
    before = weights(engine)
    steps = Steps(engine, task, Batches(weighing.dataset(task, stored), rank.device, 0, 0),
                  Plan(np.array([2 * BATCH]), BATCH, 1, 1, 0), rank, advice=str, push=lambda *_: None)
    for number in range(2):
        rows = {name: values[number * BATCH : (number + 1) * BATCH] for name, values in stored.items()}
        if not steps.take(number + 1, rows, BATCH).applied:
            return f"step {number + 1} was left out"
    return "" if not torch.equal(weights(engine), before) else "no weight has changed"


gc.freeze()  # DeepSpeed collects garbage each time that it looks at the memory
said = {}
for name, document in (STARTED | {"first": FIRST}).items():
    try:
        said[name] = moved(document)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
(directory / "said.json").write_text(json.dumps(said))
"""
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
PRESCALED = {"prescale_gradients": True, "gradient_predivide_factor": 2.0}


def zero(stage: int, **fields: object) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **fields}}


def optimizer(kind: str, **params: object) -> dict[str, Any]:
    return {"optimizer": {"type": kind, "params": {"lr": 1e-2, **params}}}


def computing(name: str, **fields: object) -> dict[str, Any]:
    return {name: {"enabled": True, **fields}}


STARTED: dict[str, dict[str, Any]] = {
    f"{kind}, ZeRO {stage}": {**zero(stage), **document}
    for stage in range(4)
    for kind, document in {
        "AdamW": optimizer("AdamW"),
        "Adam": optimizer("Adam", adam_w_mode=False),
        "SGD": optimizer("SGD", momentum=0.9) | {"zero_allow_untested_optimizer": True},
        "fp32": {"bf16": {"enabled": False}},
        "fp16": computing("fp16"),
        "fp16, constant loss scale": computing("fp16", loss_scale=128),
        "fp16, auto_cast": computing("fp16", auto_cast=True),
        "torch_autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        "immediate_grad_update": computing("bf16", immediate_grad_update=True),
        "param_dtype": computing("bf16") | {"data_types": {"param_dtype": "bfloat16"}},
        "communication_data_type": {"communication_data_type": "fp16"},
        "OneCycle": {"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-2}}},
    }.items()
}
STARTED |= {
    "scaled gradients, ZeRO 0": zero(0) | PRESCALED,
    "scaled gradients, ZeRO 1": zero(1) | PRESCALED,
    "scaled gradients, ZeRO 2": zero(2, reduce_scatter=False) | PRESCALED,
    "scaled gradients, ZeRO 3": zero(3, reduce_scatter=False) | PRESCALED,
    "gradients in fp32, ZeRO 1": zero(1) | computing("bf16") | {"data_types": {"grad_accum_dtype": "fp32"}},
    "gradients in fp16, ZeRO 2": zero(2) | computing("bf16") | {"data_types": {"grad_accum_dtype": "fp16"}},
    "states in bf16": zero(1) | computing("bf16", bf16_master_weights_and_grads=True, bf16_optimizer_states=True),
    "no norm": zero(1, compute_grad_norm=False) | {"gradient_clipping": 0.0},
    "offload_optimizer, ZeRO 1": zero(1, **OFFLOADED),
    "offload_optimizer, ZeRO 3": zero(3, **OFFLOADED),
    "offload_param": zero(3, offload_param={"device": "cpu"}, **OFFLOADED),
    "super_offload, which ZeRO 2 ignores": zero(2, offload_optimizer={"device": "cpu", "super_offload": True}),
    "zero_quantized_weights, which ZeRO 2 ignores": zero(2, zero_quantized_weights=True),
    "leaf_module": zero(3, leaf_module={"names": ["2"]}),
    "small buckets": zero(3, sub_group_size=5, reduce_bucket_size=10, overlap_comm=True),
    "round_robin_gradients": zero(2, round_robin_gradients=True, contiguous_gradients=False),
}
FIRST = zero(3, leaf_module={"names": ["0"]})


def resolved(document: dict[str, Any]) -> dict[str, Any]:
    fields = "batch_size: 8\nmicro_batch_size: 8\n"
    return filled(parse(fields, **document), total_steps=10, hidden_size=None)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The words of each engine; empty if its weights have moved."""
    directory = tmp_path_factory.mktemp("started")
    ranks.run(START, directory, world=1)
    return dict(json.loads((Path(directory) / "said.json").read_text()))


@pytest.mark.parametrize("name", STARTED)
def test_what_is_accepted_runs(name: str, said: dict[str, str]):
    config = resolved(STARTED[name])
    check_with_deepspeed(config, 10)
    check_on_cpu(config)
    assert not said[name]


def test_a_leaf_module_without_inputs_that_have_gradients_is_named(said: dict[str, str]):
    assert said["first"].startswith("PreflightError: deepspeed.zero_optimization.leaf_module names 0,")


@pytest.mark.parametrize(
    ("document", "field", "remedy"),
    [
        (zero(2) | {"prescale_gradients": True}, "prescale_gradients is True", "reduce_scatter: false"),
        (zero(3) | {"gradient_predivide_factor": 2.0}, "gradient_predivide_factor is 2.0", "reduce_scatter: false"),
        (zero(3) | optimizer("Muon"), "optimizer.type is 'Muon'", "reduce_scatter: false"),
        (computing("fp16", loss_scale=128) | optimizer("Lamb"), "fp16.loss_scale is 128", "Write 0"),
        (computing("bf16") | {"data_types": {"param_dtype": "fp32"}}, "data_types.param_dtype is 'fp32'", "'bf16'"),
        (
            {"bf16": {"enabled": False}, "data_types": {"param_dtype": "bf16"}},
            "data_types.param_dtype is 'bf16'",
            "'fp32'",
        ),
        (zero(0) | {"data_types": {"grad_accum_dtype": "fp16"}}, "data_types.grad_accum_dtype is 'fp16'", "stage 1"),
        (zero(1, compute_grad_norm=False), "zero_optimization.compute_grad_norm is False", "gradient_clipping 1.0"),
        (
            zero(1, compute_grad_norm=False, **OFFLOADED) | {"gradient_clipping": 0.0},
            "zero_optimization.compute_grad_norm is False",
            "Remove it",
        ),
        (zero(2, zenflow={"update_interval": 4}), "zero_optimization.zenflow is {", "offload_optimizer.device: cpu"),
        (zero(3, zenflow={"update_interval": 4}, **OFFLOADED), "zero_optimization.zenflow is {", "stage 1 or 2"),
        (zero(1, zenflow={"topk_ratio": 0.1}, **OFFLOADED), "zero_optimization.zenflow.update_interval is", "above 0"),
        (zero(1) | computing("bf16", bf16_master_weights_and_grads=True), "bf16.bf16_master", "offload_optimizer"),
        (zero(3) | computing("fp16", fp16_master_weights_and_grads=True), "fp16.fp16_master", "offload_optimizer"),
        (
            zero(2, **OFFLOADED) | computing("fp16", fp16_master_weights_and_grads=True) | optimizer("Muon"),
            "fp16.fp16_master",
            "AdamW",
        ),
        (
            zero(3, offload_optimizer={"device": "cpu", "ratio": 0.3}) | optimizer("AdamW", torch_adam=True),
            "zero_optimization.offload_optimizer.ratio is 0.3",
            "without torch_adam",
        ),
    ],
)
def test_what_deepspeed_refuses_in_the_workers_is_refused_before(document: dict[str, Any], field: str, remedy: str):
    with raises(SpecError, "deepspeed_refused", f"deepspeed.{field}", remedy):
        check_with_deepspeed(filled(parse(**document), on_cpu=False))


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (optimizer("Lamb"), "optimizer.type is 'Lamb'"),
        (optimizer("Lion"), "optimizer.type is 'Lion'"),
        (zero(3, zero_quantized_weights=True), "zero_quantized_weights is True"),
        (zero(3, zero_quantized_gradients=True), "zero_quantized_gradients is True"),
        (zero(3, zero_quantized_nontrainable_weights=True), "zero_quantized_nontrainable_weights is True"),
        (zero(3, offload_optimizer={"device": "cpu", "super_offload": True}), "super_offload is True"),
    ],
)
def test_what_deepspeed_has_for_gpus_alone_is_refused_on_the_cpu(document: dict[str, Any], field: str):
    spec = parse(**document)
    check_with_deepspeed(filled(spec, on_cpu=False))
    with raises(SpecError, "deepspeed_refused", field, "GPUs"):
        check_without_gpus(spec)


@pytest.mark.parametrize("name", ["ratio", "fp16_master_weights_and_grads"])
def test_fields_that_need_deepspeeds_own_adam_get_it(name: str):
    ratio = {"ratio": 0.3} if name == "ratio" else {}
    document = zero(3, offload_optimizer={"device": "cpu", **ratio})
    if not ratio:
        document |= computing("fp16", fp16_master_weights_and_grads=True)
    for on_cpu in (True, False):
        config = filled(parse(**document), on_cpu=on_cpu)
        assert "torch_adam" not in config["optimizer"]["params"]
        check_with_deepspeed(config)
