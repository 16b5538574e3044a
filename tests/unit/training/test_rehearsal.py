"""The rehearsal of a run's end before its first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maas_ray.tasks.vision.networks import Cnn
from maas_ray.training.worker import rehearsal
from tests.support import ranks
from tests.support.bundles import image_task

REHEARSE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from maas_ray.errors import PreflightError
from maas_ray.tasks.text.networks import Llama
from maas_ray.tasks.vision.networks import Cnn
from maas_ray.training.checkpoints import snapshot
from maas_ray.training.checkpoints.position import Position
from maas_ray.training.checkpoints.spec import CheckpointSpec
from maas_ray.training.deepspeed.engine import build_engine
from maas_ray.training.validation.validator import Validator
from maas_ray.training.worker import rehearsal
from maas_ray.training.worker.batches import Batches
from maas_ray.training.worker.job import Rank
from tests.support import weighing
from tests.support.bundles import image_task, text_task
from tests.unit.training.test_rehearsal import Drawing, Half

directory, number, world = Path(sys.argv[1]), int(sys.argv[2]), 2
torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=number, world_size=world)
rank = Rank(number, number, world, torch.device("cpu"))
draws = np.random.default_rng(0)
stored = {
    "image": {"pixel_values": draws.integers(0, 255, (4, 1, 8, 8), np.uint8), "label": np.arange(4) % 2},
    "text": {"input_ids": draws.integers(0, 300, (4, 129), np.uint16)},
}


def config_of(stage, precision, **changes):
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1 << 30,
        **changes,
    }


def engine_of(kind, network, config):
    task = image_task() if kind == "image" else text_task()
    engine = build_engine(network, task, config, seed=0, rank=number, on_cpu=True)
    snapshot.hold(engine)
    return engine, weighing.dataset(task, stored[kind] | {"index": np.arange(4)})


def problem_of(kind, network, stage, precision, **changes):
    engine, dataset = engine_of(kind, network, config_of(stage, precision, **changes))
    home = str(directory / "run")
    job = SimpleNamespace(
        home=home, dataset=dataset, spec=SimpleNamespace(network=network, checkpoint=CheckpointSpec(retry_seconds=0))
    )
    before = torch.get_rng_state()
    try:
        rehearsal.rehearse(engine, job, Batches(dataset, rank.device, 0, number), rank, Position(step=0, workers=world))
    except PreflightError as error:
        return str(error)
    finally:
        assert torch.equal(torch.get_rng_state(), before)
        torch.distributed.barrier()
        assert not list(Path(home).iterdir())
    return ""


for stage in (0, 1, 2, 3):
    assert not problem_of("image", Cnn(channels=(8,), hidden_size=8), stage, "fp32"), stage
    assert not problem_of("text", Llama(hidden_size=32, layers=1, heads=2), stage, "bf16"), stage
    network = Drawing(channels=(8,), hidden_size=8)
    assert "answers otherwise" in problem_of("image", network, stage, "bf16"), stage
# DeepSpeed casts while the engine computes; the loaded network must do the same, to the bit.
autocast = {"enabled": True, "dtype": "bfloat16"}
seen, compare = [], rehearsal._difference
rehearsal._difference = lambda *outcomes: seen.append(outcomes) or compare(*outcomes)
assert not problem_of("text", Llama(hidden_size=32, layers=4, heads=2), 1, "fp32", torch_autocast=autocast)
if number == 0:
    ours, loaded, wide = seen[-1]
    assert np.array_equal(ours[0]["loss"], loaded["loss"]) and not np.array_equal(loaded["loss"], wide["loss"])
rehearsal._difference = compare
# The validator beside the training measures what the workers would.
network = Llama(hidden_size=32, layers=2, heads=2)
for precision, changes in (("fp32", {"torch_autocast": autocast}), ("bf16", {})):
    config = config_of(1, precision, **changes)
    engine, dataset = engine_of("text", network, config)
    position, home = Position(step=0, workers=world, deepspeed=config), str(directory / f"validated {precision}")
    snapshot.take(engine, number, position).write(f"{home}/step-0")
    torch.distributed.barrier()
    batch = dataset.task.collate({name: rows[:1] for name, rows in stored["text"].items()})
    engine.eval()
    with torch.no_grad():
        ours = dataset.task.outcomes(engine, batch)
        if number == 0:
            validator = Validator(network, dataset, home, batch_size=1, max_rows=None, threads=1, gpu=False)
            theirs = dataset.task.outcomes(validator._load(f"{home}/step-0", position), batch)
            for name, values in ours.items():
                assert np.array_equal(values, theirs[name]), (precision, name)
    torch.distributed.barrier()
assert "in_place" in problem_of("image", Half(channels=(8,), hidden_size=8), 1, "fp32")
"""


class Drawing(Cnn):
    """A network that draws values when it is built and does not save them."""

    def build(self, task):
        import torch

        network = super().build(task)
        noise = 3 * torch.randn(len(task.labels))
        network.register_forward_hook(lambda module, given, output: output + noise.to(output.dtype))
        return network


class Half(Cnn):
    """A network with a parameter that the bundle's configuration does not build."""

    def build(self, task):
        import torch

        network = super().build(task)
        network.in_place = torch.nn.Parameter(torch.zeros(3))
        return network


def test_the_end_of_a_run_is_tried_for_every_stage_and_refused_on_every_rank(tmp_path: Path):
    ranks.run(REHEARSE, tmp_path)


@pytest.mark.parametrize(
    ("trained", "problem"),
    [
        (Cnn(channels=(8,), hidden_size=8), ""),
        (Cnn(channels=(8,), hidden_size=9), "classifier.1.weight has shape [9, 128], not [8, 128]"),
        (Cnn(channels=(8, 8), hidden_size=8), "features.4.weight is not of this network"),
    ],
)
def test_a_large_network_is_compared_by_names_and_shapes(trained: Cnn, problem: str):
    task: Any = image_task()
    engine = SimpleNamespace(module=trained.build(task))
    job: Any = SimpleNamespace(
        spec=SimpleNamespace(network=Cnn(channels=(8,), hidden_size=8)), dataset=SimpleNamespace(task=task)
    )
    said = rehearsal._names(engine, job, SimpleNamespace(rank=0))  # type: ignore[arg-type]
    assert problem in said if problem else not said


def test_outputs_are_compared_unless_training_itself_draws_them():
    def outcomes(loss: float, scores: float) -> dict[str, np.ndarray]:
        return {"loss": np.array([loss]), "scores": np.array([[scores, 1 - scores]]), "label": np.array([1])}

    ours = [outcomes(1.0, 0.5), outcomes(1.0, 0.7)]  # the scores are random
    assert not rehearsal._difference(ours, outcomes(1.0, 0.1))
    assert "`loss` of a row is 1.001 and not 1." in rehearsal._difference(ours, outcomes(1.001, 0.5))
    in_fp32 = outcomes(1.0, 0.5)
    assert not rehearsal._difference(ours, outcomes(1.001, 0.5), in_fp32)  # 16 bits
    assert "`loss`" in rehearsal._difference(ours, outcomes(1.1, 0.5), outcomes(1.1, 0.5))
    steady = [outcomes(np.nan, 0.5), outcomes(np.nan, 0.5)]
    assert not rehearsal._difference(steady, outcomes(np.nan, 0.5))
    assert "`scores`" in rehearsal._difference(steady, outcomes(np.nan, 0.6))


def test_rounding_is_compared_with_the_largest_output_and_with_what_16_bits_do():
    def prediction(*values: float) -> dict[str, np.ndarray]:
        return {"prediction": np.array([values])}

    # Thousands in steps of bf16 (2 to the power of -8): the second value is the difference of large ones.
    ours = [prediction(4000.0, 8.0)] * 2
    assert not rehearsal._difference(ours, prediction(4000.0, -8.0), prediction(4000.0, -8.0))
    assert rehearsal._difference(ours, prediction(4000.0, 800.0), prediction(4000.0, 800.0))
    # A deep network: 16 bits move the loaded network's output by 0.5, and the engine's by as much the other way.
    ours = [prediction(1.0)] * 2
    assert not rehearsal._difference(ours, prediction(2.0), prediction(1.5))
    assert rehearsal._difference(ours, prediction(4.0), prediction(4.0)), "16 bits do not explain it"
    assert rehearsal._difference(ours, prediction(2.0)), "fp32"
