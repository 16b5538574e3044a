"""Parameters that are not trained, and buffers: what is saved, exported, validated and resumed is what was built."""

from pathlib import Path

from maas_ray.errors import PreflightError
from maas_ray.training.deepspeed.groups import optimizer_groups
from maas_ray.training.deepspeed.untrained import Untrained
from tests.support import ranks
from tests.support.errors import raises
from tests.support.weighing import INPUTS, Weighing

TRAIN = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from maas_ray.training.checkpoints import layout, loading, snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.weights import consolidated
from maas_ray.training.deepspeed.engine import build_engine, weights_are_finite
from maas_ray.training.export import optimizer_order, write_weights
from tests.unit.training.test_untrained import CASES, Network, task_of

directory, number, world = Path(sys.argv[1]), int(sys.argv[2]), 2
torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=number, world_size=world)


def engine_of(stage, precision, case, spare, universal=False):
    config = {
        "train_batch_size": 4 * world,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision.startswith("bf16")},
        "data_types": {"grad_accum_dtype": "fp32"} if precision == "bf16 in fp32" else {},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 1 << 30,
    }
    network, task = Network(case), task_of(case)
    engine = build_engine(network, task, config, seed=0, rank=number, on_cpu=True, spare=spare)
    assert len(engine.basic_optimizer.param_groups) == 1 + spare
    snapshot.hold(engine)
    engine.train()
    return engine


def train(engine, steps=2):
    for step in range(steps):
        torch.manual_seed(step)
        values = torch.randn(4, 4).to(torch.float32)
        engine.backward(engine(values).float().square().mean())
        engine.step()


for case in CASES:
    torch.manual_seed(0)
    built = Network(case).build(task_of(case))
    names = dict(built.named_parameters(remove_duplicate=False))
    left_out = {name for name in names if case == "left out" and not name.startswith("head")}
    untrained = {name for name, parameter in names.items() if not parameter.requires_grad} | left_out
    built = {name: value.clone() for name, value in built.state_dict().items()}
    # Checkpoints of version 0.2 have one group, which holds vectors too.
    spare = case != "tied"
    for stage in (0, 1, 2, 3):
        precisions = ("fp32", "bf16") if case == "some" else ("bf16",)
        if case == "some" and stage == 1:
            precisions = (*precisions, "bf16 in fp32")  # another optimizer of DeepSpeed's
        for precision in precisions:
            what = f"{case}, ZeRO {stage}, {precision}"
            engine = engine_of(stage, precision, case, spare)
            train(engine)
            home, out = directory / what, directory / f"{what} out"
            snapshot.take(engine, number, Position(step=2, workers=world)).write(str(home))
            torch.distributed.barrier()
            assert weights_are_finite(engine), what  # a rank may have no value of a small parameter
            seen = engine.module.seen.clone()
            if number == 0:
                out.mkdir()
                skeleton = Network(case).skeleton(task_of(case))
                write_weights(home, skeleton.state_dict(), set(), out, "5GB")
                weights = load_file(out / "model.safetensors")
                assert weights.keys() == built.keys(), what
                for name, value in weights.items():
                    if name in untrained or name in ("fixed", "counted"):
                        assert torch.equal(value, built[name]), f"{what}: {name}"
                    elif name != "seen":
                        assert not torch.equal(value, built[name]), f"{what}: {name} was not trained"
                assert torch.equal(weights["seen"], seen), what
            again = engine_of(stage, precision, case, spare)
            loading.load(again, home, layout.TAG, home, number, [0])
            if stage and case == "some":
                if number == 0:
                    loading.convert(home, directory / f"{what} universal")
                torch.distributed.barrier()
                again = engine_of(stage, precision, case, spare, universal=True)
                loading.load(again, directory / f"{what} universal", layout.UNIVERSAL_TAG, home, number, [0])
            assert torch.equal(again.module.seen, seen), what
            for resumed in (engine, again):
                train(resumed)
            snapshot.take(engine, number, Position(step=4, workers=world)).write(f"{home} on")
            snapshot.take(again, number, Position(step=4, workers=world)).write(f"{home} again")
            torch.distributed.barrier()
            if number == 0:
                on, resumed = consolidated(Path(f"{home} on")), consolidated(Path(f"{home} again"))
                assert on.keys() == resumed.keys() == built.keys(), what
                for name in on:
                    assert torch.equal(on[name].contiguous(), resumed[name].contiguous()), f"{what}: {name} resumed"
            torch.distributed.barrier()
"""

CASES = ("some", "all but the head", "tied", "left out")


class Network:
    """The spec of a network with frozen parameters, as far as an engine needs it.

    Args:
        case: which are frozen; `left out`: none, but the task gives the optimizer the head alone.
    """

    of_transformers = False

    def __init__(self, case: str) -> None:
        self.case = case

    def build(self, _: object):
        import torch
        from torch import nn

        case = self.case

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(INPUTS, 7)
                self.middle = nn.Linear(7, 7)
                self.head = nn.Linear(7, 7)
                self.scale = nn.Parameter(torch.randn(1))
                self.register_buffer("fixed", torch.randn(3, dtype=torch.float64))
                self.register_buffer("counted", torch.tensor([1 << 40]))
                self.register_buffer("seen", torch.zeros(7))
                if case == "tied":
                    self.tied = nn.Linear(7, 7)
                    self.tied.weight = self.middle.weight
                frozen = {
                    "some": [self.middle],
                    "all but the head": [self.first, self.middle],
                    "tied": [self.middle],
                    "left out": [],
                }
                for module in frozen[case]:
                    module.requires_grad_(False)
                self.scale.requires_grad_(case == "tied")

            def forward(self, x):
                hidden = torch.tanh(self.middle(torch.tanh(self.first(x.to(self.first.weight.dtype)))))
                if case == "tied":
                    hidden = torch.tanh(self.tied(hidden))
                if self.training:
                    self.seen += hidden.detach().abs().mean(0).float()
                return self.head(hidden) * self.scale

        return Module()

    def skeleton(self, task: object):
        import torch

        with torch.device("meta"):
            return self.build(task)


class OfTheHead(Weighing):
    def parameters(self, network):
        return network.head.parameters()


class OfAll(Weighing):
    def parameters(self, network):
        return network.parameters()


def task_of(case: str) -> Weighing:
    return OfTheHead() if case == "left out" else OfAll()


def test_untrained_parameters_and_buffers_are_exported_and_resumed_as_they_were_built(tmp_path: Path):
    """Each ZeRO stage in fp32 and bf16. The expected values are those of the network before DeepSpeed has it."""
    ranks.run(TRAIN, tmp_path)


def test_a_network_without_a_parameter_to_train_is_refused():
    module = Network("some").build(None).requires_grad_(False)
    with raises(PreflightError, "nothing_to_train", "Module"):
        Untrained.of(module, optimizer_groups(OfAll(), module, spare=True))
