"""An optimizer step with a task that weighs rows, groups parameters and augments batches; and a validation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from maas_ray.errors import DataError, NonFiniteLossError
from maas_ray.training.plan import Plan
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.step import MAX_TRIES, Steps, _Weights
from tests.support import ranks, weighing
from tests.support.bundles import image_task
from tests.support.errors import raises
from tests.support.weighing import Perceptron, Weighing

ROWS, BATCH = 17, 10  # the last step is short
CONFIG = {
    "gradient_clipping": 0.0,
    # A large epsilon, so that an update depends on the size of a gradient.
    "optimizer": {"type": "AdamW", "params": {"lr": 0.05, "eps": 1.0, "torch_adam": True}},
    "steps_per_print": 1 << 30,
}

TRAIN = """
import pickle, sys
from collections import deque
from itertools import chain
import numpy as np, torch
from pathlib import Path
from maas_ray.tasks.base import outcomes_of
from maas_ray.tasks.vision.networks import Cnn
from maas_ray.training import collectives
from maas_ray.training.checkpoints import layout, loading, snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.deepspeed.engine import build_engine
from maas_ray.training.checkpoints.weights import consolidated
from maas_ray.training.export import optimizer_order
from maas_ray.training.plan import Plan
from maas_ray.training.worker.ahead import Ahead
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from maas_ray.training.worker.measure import measure
from maas_ray.training.worker.step import Steps
from tests.support import weighing
from tests.support.bundles import image_task
from tests.support.weighing import Perceptron, Weighing
from tests.unit.training.test_step import BATCH, CONFIG, ROWS, Plain

directory, number, world = Path(sys.argv[1]), int(sys.argv[2]), 2
torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=number, world_size=world)
rank, stored = Rank(number, number, world, torch.device("cpu")), weighing.rows(ROWS)
plan = Plan(np.array([ROWS]), BATCH, 1, 1, 0)


def gathered(engine):
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: value.detach().clone() for name, value in engine.module.named_parameters()}


def engine_of(task, stage, micro_batch, precision, weight_decay=0.01):
    passes = -(-BATCH // (world * micro_batch))
    config = CONFIG | {
        "train_batch_size": world * micro_batch * passes,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": passes,
        "zero_optimization": {"stage": stage},
    }
    optimizer = CONFIG["optimizer"]
    config["optimizer"] = optimizer | {"params": optimizer["params"] | {"weight_decay": weight_decay}}
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    engine = build_engine(Perceptron(), task, config, seed=0, rank=number, on_cpu=True)
    snapshot.hold(engine)
    engine.train()
    return engine


def train(engine, task):
    batches = Batches(weighing.dataset(task, stored), rank.device, 0, number)
    steps = Steps(engine, task, batches, plan, rank, advice=str, push=lambda *_: None)
    shares = [[(step - 1) * BATCH + bound for bound in plan.share(step - 1, number, world)] for step in (1, 2)]
    feed = ({name: values[low:high] for name, values in stored.items()} for low, high in shares)
    micro_batch = engine.train_micro_batch_size_per_gpu()
    losses = []
    with Ahead(batches.passes(feed, plan, first=1, world=world, micro_batch=micro_batch)) as passes:
        for step, (low, high) in enumerate(shares, 1):
            first = next(passes)
            prepared = chain([first.batch], (one.batch for one in passes))
            taken = steps.take(step, first.rows, high - low, prepared)
            assert taken.applied
            total = torch.stack(taken.losses).float().mean()
            torch.distributed.all_reduce(total)
            losses.append(float(total) / world)
        assert next(passes, None) is None, "every pass was taken"
    return losses


results, plain = {}, {}
for stage in (0, 1, 2, 3):
    task = Plain()
    engine = engine_of(task, stage, 5, "fp32", weight_decay=0.5)
    train(engine, task)
    plain[stage] = gathered(engine)
for stage in (0, 1):
    for micro_batch in (1, 3, 5):
        task = Weighing()
        engine = engine_of(task, stage, micro_batch, "fp32")
        losses = train(engine, task)
        assert [group["weight_decay"] for group in engine.optimizer.param_groups] == [0.0, 0.5]
        module = {name: value.detach().clone() for name, value in engine.module.named_parameters()}
        results[stage, micro_batch] = losses, module
        count = len(task.augmented)
        measure(engine, weighing.dataset(task, stored), Batches(weighing.dataset(task, stored), rank.device, 0, number),
                rank, "validation", None)
        assert len(task.augmented) == count > 0, "a validation must not augment"

for stage in (0, 1):
    task = Weighing(noise=0.1)
    engine = engine_of(task, stage, 3, "bf16")
    train(engine, task)
    home = directory / f"saved-{stage}"
    snapshot.take(engine, number, Position(step=2, workers=world)).write(str(home))
    torch.distributed.barrier()
    skeleton = Perceptron().build(task)
    state = consolidated(home, optimizer_order(task, skeleton))
    rounded = {name: state[name].contiguous().bfloat16() for name in state}
    for name, value in engine.module.named_parameters():
        assert torch.equal(rounded[name], value), name
    assert any(not torch.equal(state[name].contiguous(), rounded[name].float()) for name in state), "rounded"
    again = engine_of(task, stage, 3, "bf16")
    loading.load(again, home, layout.TAG, home, number, [0])
    for (name, value), before in zip(again.module.named_parameters(), engine.module.parameters()):
        assert torch.equal(value, before), name
    train(engine, task), train(again, task)
    for (name, value), before in zip(again.module.named_parameters(), engine.module.parameters()):
        assert torch.equal(value, before), f"{name} after resuming"

if number == 0:
    torch.save((results, plain), directory / "results.pt")

# Validation: the same metrics as in one process, in messages of a limited size.
ROUND = collectives.ROUND_BYTES = 1 << 12
sizes, gather = [], torch.distributed.gather_object


def gather_object(message, received):
    sizes.append(len(pickle.dumps(message)))
    gather(message, received)


torch.distributed.gather_object = gather_object

# Parts of one rank alone, of different sizes, and none at all.
for counts in ((0, 40), (40, 3), (0, 0)):
    parts = deque(f"{number}.{part}" + 200 * "x" for part in range(counts[number]))
    arrived = [text.rstrip("x") for text in collectives.to_first_rank(parts)]
    expected = [f"{rank}.{part}" for rank, count in enumerate(counts) for part in range(count)]
    assert arrived == (expected if number == 0 else []), arrived
    assert not parts
assert len(sizes) > 4, "one message holds all"
assert max(sizes) < ROUND / world + 500

torch.distributed.gather_object = gather
draws, task = np.random.default_rng(0), image_task()
labels = np.arange(50) % 2
pixels = draws.integers(0, 255, (50, 1, 8, 8), np.uint8)
dataset = weighing.dataset(task, {"pixel_values": pixels, "label": labels, "index": np.arange(50)})
torch.manual_seed(0)
network = Cnn(channels=(8,), hidden_size=8).build(task)
alone = task.metrics(outcomes_of(task, network.eval(), dataset.batches(None, 4, 0, 50), torch.device("cpu")))
first = task.metrics(outcomes_of(task, network, dataset.batches(None, 4, 0, 20), torch.device("cpu")))


class Engine:
    train = eval = staticmethod(lambda: None)
    train_micro_batch_size_per_gpu = staticmethod(lambda: 4)

    def __call__(self, *arguments, **named):
        return network(*arguments, **named)


measured = measure(Engine(), dataset, Batches(dataset, rank.device, 0, number), rank, "validation", None, first=20)
assert measured.metrics.keys() == alone.keys()
for name, value in alone.items():
    np.testing.assert_allclose(measured.metrics[name], value, rtol=1e-6, err_msg=name)
np.testing.assert_allclose(measured.first_loss, first["loss"], rtol=1e-6)
"""


class Plain(Weighing):
    """A task that does not group its parameters."""

    def parameters(self, network: Any) -> Any:
        return network.parameters()


def test_weights_make_a_step_independent_of_how_its_rows_are_divided(tmp_path: Path):
    """Two DeepSpeed workers against one plain torch optimizer that sees each step's rows at once.

    The decay of biases is 0 in that optimizer if the task does not group its parameters. Metrics of a validation are
    compared with those of one process.
    """
    ranks.run(TRAIN, tmp_path)
    results, plain = torch.load(tmp_path / "results.pt")
    assert (len(results), len(plain)) == (6, 4)
    losses, network = trained(Weighing().parameters)
    for measured, parameters in results.values():
        np.testing.assert_allclose(measured, losses, rtol=1e-5)
        assert_equal(parameters, network)
    _, network = trained(
        lambda network: [
            {"params": [network[0].weight, network[2].weight], "weight_decay": 0.5},
            {"params": [network[0].bias, network[2].bias], "weight_decay": 0.0},
        ]
    )
    for parameters in plain.values():
        assert_equal(parameters, network)


def trained(groups: Any) -> tuple[list[float], Any]:
    """Losses and network of plain torch over the two steps."""
    task, stored = Weighing(), weighing.rows(ROWS)
    torch.manual_seed(0)
    network = Perceptron().build(task)
    optimizer = torch.optim.AdamW(groups(network), lr=0.05, eps=1.0)
    losses = []
    for low, high in ((0, BATCH), (BATCH, ROWS)):
        loss = task.loss(network, task.collate({name: values[low:high] for name, values in stored.items()}))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, network


def assert_equal(parameters: dict[str, torch.Tensor], network: torch.nn.Module) -> None:
    for name, value in network.named_parameters():
        torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-4, atol=1e-6)


def test_a_task_without_weights_of_its_own_weighs_each_row_once():
    task = image_task()
    assert task.weights({"pixels": np.zeros((3, 8, 8, 1)), "label": np.zeros(3)}).tolist() == [1, 1, 1]
    network = Perceptron().build(task)
    assert list(map(id, task.parameters(network))) == list(map(id, network.parameters()))  # type: ignore[arg-type]
    batch = {"label": torch.zeros(3)}
    assert task.augment(batch, torch.Generator()) is batch


def batches(task: Weighing, *, seed: int = 0, rank: int = 0) -> Batches:
    return Batches(weighing.dataset(task, weighing.rows(8)), torch.device("cpu"), seed, rank)


def test_augmentation_depends_on_seed_step_and_rank_alone():
    def drawn(seed: int, rank: int, step: int) -> np.ndarray:
        task = Weighing(noise=1.0)
        list(batches(task, seed=seed, rank=rank).of_step(step, weighing.rows(8), 8))
        return task.augmented[0]

    first = drawn(1, 2, 3)
    assert np.array_equal(first, drawn(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert not np.array_equal(first, drawn(*other)), other


class Overflowing:
    """An engine in fp16 whose gradients overflow in the first passes. DeepSpeed's own needs a processor with fp16."""

    def __init__(self, module: torch.nn.Module, overflows: int) -> None:
        self.module, self.left, self.optimizer = module, overflows, SimpleNamespace(loss_scale=2.0**16)
        self.seen: list[float] = []

    def __call__(self, x: torch.Tensor) -> Any:
        return self.module(x)

    def train_micro_batch_size_per_gpu(self) -> int:
        return 4

    def gradient_accumulation_steps(self) -> int:
        return 2

    def get_lr(self) -> list[float]:
        return [0.125]

    def fp16_enabled(self) -> bool:
        return True

    def dynamic_loss_scale(self) -> bool:
        return True

    def zero_optimization(self) -> bool:
        return True

    def backward(self, loss: torch.Tensor) -> None:
        self.seen.append(loss.item())

    def step(self) -> None:
        if len(self.seen) % 2 == 0 and self.left:
            self.left -= 1
            self.optimizer.loss_scale /= 2
            self.applied = False
        else:
            self.applied = True

    def was_step_applied(self) -> bool:
        return self.applied


def steps(engine: Overflowing, task: Weighing, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Steps:
    alone = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _, async_op: alone)
    plan = Plan(np.array([8]), 8, 1, 1, 0)
    rank = Rank(0, 0, 1, torch.device("cpu"))
    return Steps(
        engine, task, batches(task), plan, rank, advice=lambda: "advice", push=lambda *event: said.append(event[2])
    )


def test_a_step_that_is_repeated_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch):
    task, said = Weighing(noise=1.0), []
    engine = Overflowing(Perceptron().build(task), overflows=2)
    prepared = list(batches(task).of_step(1, weighing.rows(8), 4))  # as a thread prepares the first try
    taken = steps(engine, task, said, monkeypatch).take(1, weighing.rows(8), 8, iter(prepared))
    assert (len(taken.losses), taken.applied, taken.learning_rate) == (2, True, 0.125)
    assert engine.seen[:2] == engine.seen[2:4] == engine.seen[4:]
    assert all(map(np.array_equal, task.augmented[:2], task.augmented[4:]))
    assert not np.array_equal(*task.augmented[:2])
    (line,) = said
    assert "65536" in line
    assert "16384" in line


def test_gradients_that_never_fit_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    task = Weighing()
    engine = Overflowing(Perceptron().build(task), overflows=1000)
    with raises(NonFiniteLossError, "non_finite_loss", "gradient norm", "step 7", "advice"):
        steps(engine, task, [], monkeypatch).take(7, weighing.rows(8), 8)
    assert len(engine.seen) == 2 * MAX_TRIES


@pytest.mark.parametrize(
    ("weights", "named"),
    [(np.full(8, 0.5), "float64"), (np.ones((8, 1), np.int64), "[8, 1]"), (np.ones(3, int), "[3]")],
)
def test_weights_must_be_an_integer_for_each_row(
    weights: np.ndarray, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Weighing()
    monkeypatch.setattr(Weighing, "weights", lambda self, rows: weights)
    engine = Overflowing(Perceptron().build(task), overflows=0)
    with raises(DataError, "invalid_weights", "Weighing", named):
        steps(engine, task, [], monkeypatch).take(1, weighing.rows(8), 8)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_sum_on_the_device_weighs_as_a_number_does(precision: torch.dtype) -> None:
    loss = torch.tensor(100.0, dtype=precision)
    summed = _Weights(np.array([1, 2, 4]), torch.tensor([21]), SimpleNamespace(wait=lambda: None))

    weighted = summed.weighted(loss, slice(0, 2), 2)  # 2/7, which 16 bits do not hold

    assert weighted.dtype == precision
    assert weighted.shape == ()
    assert (
        weighted.item() == _Weights(summed.rows, 21).weighted(loss, slice(0, 2), 2).item() == (loss * (6 / 21)).item()
    )
