"""Networks of the user's own whose state training changes, and that ZeRO 3 shares out: right, or refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.support import ranks
from tests.support.weighing import INPUTS, Perceptron

PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
import deepspeed, torch
from maas_ray.errors import PreflightError
from maas_ray.training.checkpoints import snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.weights import consolidated
from maas_ray.training.deepspeed import zero3
from maas_ray.training.deepspeed.engine import build_engine
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.unsaved import Unsaved
from tests.support import weighing
from tests.unit.training import test_unsaved as cases

directory, number, world = Path(sys.argv[1]), int(sys.argv[2]), 2
torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=number, world_size=world)
rank, task, stored = Rank(number, number, world, torch.device("cpu")), weighing.Weighing(), weighing.rows(8)
dataset = weighing.dataset(task, stored)
batches, job = Batches(dataset, rank.device, 0, number), SimpleNamespace(dataset=dataset)


def engine_of(module, stage, precision="fp32"):
    config = {
        "train_batch_size": 4 * world,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1 << 30,
    }
    engine = build_engine(cases.Spec(module), task, config, seed=0, rank=number, on_cpu=True)
    snapshot.hold(engine)
    return engine


def step(engine):
    part = slice(4 * number, 4 * number + 4)
    engine.backward(task.loss(engine, batches.of({name: values[part] for name, values in stored.items()})))
    engine.step()


def problem_after_a_step(module, stage, precision="fp32"):
    engine = engine_of(module, stage, precision)
    unsaved = Unsaved(engine, job, batches, rank)
    unsaved.check()
    engine.train()
    step(engine)
    before = torch.get_rng_state(), [value.clone() for value in engine.module.buffers()]
    try:
        unsaved.check()
        return ""
    except PreflightError as error:
        assert error.code == "state_not_saved"
        return str(error)
    finally:
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(map(torch.equal, engine.module.buffers(), before[1]))


for module, named in cases.UNSAVED.items():
    said = problem_after_a_step(module, 1)
    assert (named in said) if named else not said, (module, said)
for module in (cases.RunningMean, cases.Made):
    assert cases.UNSAVED[module] in problem_after_a_step(module, 3), module
assert not problem_after_a_step(cases.Caching, 3)
assert not problem_after_a_step(cases.Clamping, 0), "no copy is updated"

# Under ZeRO 3 the constructor's own values count, and a module that is used twice has both names.
torch.manual_seed(0)
built = cases.Initialising().state_dict()
engine = engine_of(cases.Initialising, 3)
with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
    for name, value in engine.module.state_dict().items():
        assert torch.equal(value, built[name]), name
snapshot.take(engine, number, Position(step=0, workers=world)).write(str(directory / "saved"))
torch.distributed.barrier()
saved = consolidated(directory / "saved")
assert saved.keys() == built.keys()
assert all(torch.equal(saved[name].contiguous(), value) for name, value in built.items())
zero3.MAX_WHOLE_BYTES = 0
assert not problem_after_a_step(cases.Plain, 3)
for module in (cases.Initialising, cases.Averaging):
    try:
        engine_of(module, 3)
        raise SystemExit(f"{module} was taken")
    except PreflightError as error:
        assert error.code == "zero_3_unsupported", error

# A moving average in frozen parameters is saved as it is, not as it was built.
engine = engine_of(cases.Averaging, 1, "bf16")
engine.train()
step(engine)
snapshot.take(engine, number, Position(step=1, workers=world)).write(str(directory / "average"))
torch.distributed.barrier()
assert torch.equal(consolidated(directory / "average")["mean"].contiguous(), engine.module.mean)
"""


class Spec(Perceptron):
    """A network's spec that builds a module of this file."""

    def __init__(self, module: type[nn.Module]) -> None:
        self._module = module

    def build(self, _: object) -> nn.Module:
        return self._module()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(INPUTS, 8), nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        return self.head(torch.tanh(self.first(x)))


class RunningMean(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(INPUTS), persistent=False)

    def forward(self, x: Any) -> Any:
        if self.training:
            self.mean.lerp_(x.detach().float().mean(0), 0.001)
        return super().forward(x - self.mean.to(x.dtype))


class SavedMean(RunningMean):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(INPUTS))


class Scheduled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0

    def forward(self, x: Any) -> Any:
        if self.training:
            self.temperature *= 1.001
        return super().forward(x / self.temperature)


class Made(Plain):
    """It makes its state in the first pass."""

    def forward(self, x: Any) -> Any:
        if self.training:
            self.shift = x.detach().mean(0)
        return super().forward(x - self.shift) if hasattr(self, "shift") else super().forward(x)


class Helped(Plain):
    """It keeps its state in an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = SimpleNamespace(total=torch.zeros(INPUTS))

    def forward(self, x: Any) -> Any:
        if self.training:
            self.kept.total = self.kept.total + x.detach().mean(0)
        return super().forward(x - self.kept.total)


class Thawing(Plain):
    def forward(self, x: Any) -> Any:
        self.first.weight.requires_grad_(not self.training)
        return super().forward(x)


class Clamping(Plain):
    def forward(self, x: Any) -> Any:
        if self.training:
            self.first.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class Caching(Plain):
    """It keeps a table that grows with the input, a count and its last input, which do not change an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, None
        self.register_buffer("table", torch.ones(1), persistent=False)

    def forward(self, x: Any) -> Any:
        if len(x) > len(self.table):
            self.register_buffer("table", torch.ones(len(x)), persistent=False)
        self.calls, self.last = self.calls + 1, x
        return super().forward(x * self.table[: len(x), None].to(x.dtype))


UNSAVED = {
    RunningMean: "changed mean",
    Scheduled: "changed temperature",
    Made: "changed shift",
    Helped: "changed kept",
    Thawing: "first.weight",
    Clamping: "first.weight",
    Caching: "",
    SavedMean: "",
}


class Initialising(Plain):
    """It initialises parameters of its parts, and uses a part twice."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(8, 8)
        self.again = self.middle
        nn.init.constant_(self.first.weight, 0.25)
        self.head.bias.data.fill_(-4.5)

    def forward(self, x: Any) -> Any:
        return self.head(self.again(torch.tanh(self.middle(self.first(x)))))


class Averaging(Plain):
    """It keeps a moving average of a weight in a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(self.first.weight.detach().clone() + 1 / 3, requires_grad=False)

    def forward(self, x: Any) -> Any:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(self.first.weight, 0.5)
        return super().forward(x) + F.linear(x, self.mean).mean(1, keepdim=True)


def test_state_that_a_version_would_lack_ends_the_run_and_zero_3_keeps_initial_values(tmp_path: Path) -> None:
    ranks.run(PROGRAM, tmp_path)
