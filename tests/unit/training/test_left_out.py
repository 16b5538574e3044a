"""Steps whose gradients are not finite, and the learning rate of each step, for every ZeRO stage and precision."""

from pathlib import Path

from tests.support import ranks
from tests.support.weighing import Weighing

TRAIN = """
import sys
from pathlib import Path
import numpy as np, torch
from maas_ray.errors import NonFiniteLossError
from maas_ray.training.deepspeed.engine import build_engine, weights_are_finite
from maas_ray.training.deepspeed.resolve import resolve
from maas_ray.training.deepspeed.schedule import begin_schedule, continue_schedule
from maas_ray.training.plan import Plan
from maas_ray.training.spec import TrainSpec
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.step import Steps
from tests.support import weighing
from tests.support.weighing import Perceptron
from tests.unit.training.test_left_out import Fragile

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
ROWS, BATCH = 48, 8
rank, task, stored = Rank(0, 0, 1, torch.device("cpu")), Fragile(), weighing.rows(ROWS)
stored["tokens"][:] = 1
stored["y"][3 * BATCH] = np.inf  # the loss of step 4 is finite, its gradients are not


def engine_of(total=6, **fields):
    fields = {"dataset": "d", "model": "m", "network": {"type": "linear"}, "batch_size": BATCH, **fields}
    spec = TrainSpec.parse({"micro_batch_size": BATCH, "learning_rate": 0.1, **fields})
    config = resolve(spec, workers=1, total_steps=total, hidden_size=None, on_cpu=True)
    engine = build_engine(Perceptron(), task, config, seed=0, rank=0, on_cpu=True)
    engine.train()
    return engine


def weights(engine):
    return torch.cat([getattr(p, "ds_tensor", p).detach().float().flatten() for p in engine.module.parameters()])


def train(engine, steps, total=6):
    plan = Plan(np.array([ROWS]), BATCH, 1, 1, 0)
    taking = Steps(engine, task, Batches(weighing.dataset(task, stored), rank.device, 0, 0), plan, rank,
                   advice=str, push=lambda *_: None)
    for step in steps:
        before = weights(engine)
        used = engine.basic_optimizer.param_groups[0]["lr"]
        taken = taking.take(step, {n: v[(step - 1) * BATCH : step * BATCH] for n, v in stored.items()}, BATCH)
        assert taken.learning_rate == used
        yield taken, not torch.equal(weights(engine), before)


for stage in (0, 1, 2, 3):
    for precision in ("fp32", "bf16"):
        what = f"ZeRO {stage}, {precision}"
        engine = engine_of(deepspeed={"zero_optimization": {"stage": stage}}, precision=precision)
        begin_schedule(engine)
        for step, (taken, changed) in enumerate(train(engine, range(1, 7)), 1):
            assert all(loss.isfinite() for loss in taken.losses), what
            assert taken.applied == changed == (step != 4), f"{what}, step {step}"
            assert taken.learning_rate > 0, what
            assert weights_are_finite(engine), what
        next(iter(engine.module.parameters())).data.fill_(float("nan"))
        if stage < 3:
            assert not weights_are_finite(engine), what

SCHEDULERS = {
    "WarmupLR": {"warmup_num_steps": 3},
    "WarmupDecayLR": {"warmup_num_steps": "auto", "total_num_steps": "auto"},
    "WarmupCosineLR": {"warmup_num_steps": 100, "total_num_steps": "auto", "warmup_type": "linear"},
    "OneCycle": {"cycle_min_lr": 0.0, "cycle_max_lr": 0.1, "cycle_first_step_size": 10},
    "LRRangeTest": {"lr_range_test_min_lr": 0.01},
    "CosineAnnealingLR": {"T_max": 6},
}
for name, params in SCHEDULERS.items():
    for total in (1, 3):
        engine = engine_of(total, deepspeed={"scheduler": {"type": name, "params": params}}, precision="fp32")
        begin_schedule(engine)
        for taken, changed in train(engine, range(1, total + 1)):
            assert taken.learning_rate > 0 and changed, f"{name}, {total} steps"


def rates(engine, steps):
    result = []
    for _ in range(steps):
        result.append(engine.get_lr()[0])
        engine.lr_scheduler.step()
    return result


def close(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


# Linear warm-up over w steps, then a cosine to a tenth (Loshchilov and Hutter 2017), or a line to 0 after the end.
def cosine(step, warmup, total):
    if step < warmup:
        return 0.1 * step / warmup
    progress = (step - warmup + 1) / (total + 1 - warmup)
    return 0.1 * (0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2)


for warmup in (0, 1, 4):
    engine = engine_of(10, warmup_steps=warmup)
    lead = begin_schedule(engine)
    assert lead == 2
    expected = [cosine(step, max(1, warmup), 10) for step in range(1, 11)]
    before = rates(engine, 5)
    close(before, expected[:5])
    saved = engine.lr_scheduler.state_dict()
    again = engine_of(10, warmup_steps=warmup)
    again.lr_scheduler.load_state_dict(saved)
    continue_schedule(again, lead)
    again.lr_scheduler.step(saved["last_batch_iteration"])
    close(rates(again, 5), expected[5:])
    # A checkpoint of 0.2.0 goes on with DeepSpeed's own numbers.
    old, plain = engine_of(10, warmup_steps=warmup), engine_of(10, warmup_steps=warmup)
    continue_schedule(old, 0)
    close(rates(old, 10), rates(plain, 10))
line = {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 4, "total_num_steps": 10, "warmup_type": "linear"}}
engine = engine_of(10, deepspeed={"scheduler": line})
begin_schedule(engine)
close(rates(engine, 10), [0.1 * min(step / 4, (11 - step) / 7) for step in range(1, 11)])

# Torch's scaler, without DeepSpeed's fp16: such a step is taken again until its gradients fit, here at no scale.
engine = engine_of(deepspeed={"torch_autocast": {"enabled": True, "dtype": "float16"}})
begin_schedule(engine)
try:
    for taken, changed in train(engine, range(1, 5)):
        assert taken.applied and changed
except NonFiniteLossError as error:
    assert error.step == 4 and weights_are_finite(engine)
else:
    raise AssertionError("step 4 was taken")
"""


class Fragile(Weighing):
    """A task whose gradients are not finite if a target is infinite, although its loss is."""

    def loss(self, model, batch):
        import torch

        bad = batch["y"].isinf()
        parameter = next(iter(model.module.parameters()))
        output = model(batch["x"].to(parameter.dtype))[:, 0].float()
        errors = (output - torch.where(bad, 0.0, batch["y"])) ** 2
        # The derivative of a square root at 0 is infinite; 0 times it is NaN.
        return torch.where(bad, torch.sqrt(torch.where(bad, output * 0.0, 1.0)), errors).mean()


def test_steps_without_finite_gradients_are_left_out_and_every_other_step_moves_the_weights(tmp_path: Path):
    ranks.run(TRAIN, tmp_path, world=1)
