"""A Keras model is a network of a custom task."""

from pathlib import Path

import pytest

from maas_ray.training.spec import TrainSpec
from tests.support.custom import ROWS, fitted, prepare_spec

KERAS = """
import keras


def net(hidden: int = 3):
    entry = keras.Input((2,), name="x")
    normed = keras.layers.BatchNormalization()(entry)
    return keras.Model(entry, keras.layers.Dense(2)(keras.layers.Dense(hidden, activation="relu")(normed)))


def unbuilt(hidden: int = 3):
    return keras.Sequential([keras.layers.Dense(hidden, activation="relu"), keras.layers.Dense(2)])
"""


@pytest.mark.parametrize("name", ["net", "unbuilt"])
def test_a_keras_model_is_a_network(here: Path, name: str) -> None:
    import torch

    (here / "of_keras.py").write_text(KERAS)
    task = fitted(prepare_spec())
    spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": f"of_keras:{name}", "hidden": 5}}).network
    torch.manual_seed(3)
    again = spec.build(task)
    torch.manual_seed(3)
    module = spec.build(task)

    assert list(module.state_dict()) == list(again.state_dict())
    for value, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other)
    torch.manual_seed(4)
    again = spec.build(task)
    assert {key: value.shape for key, value in spec.skeleton(task).state_dict().items()} == {
        key: value.shape for key, value in module.state_dict().items()
    }
    again.load_state_dict(module.state_dict())
    batch = task.collate(task.encode([task.spec.parse_row(row) for row in ROWS]))
    torch.testing.assert_close(again.eval()(x=batch["x"]), module.eval()(x=batch["x"]))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    before = float(task.loss(module, batch).detach())
    for _ in range(30):
        loss = task.loss(module.train(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(task.loss(module.eval(), batch).detach()) < before


def test_what_keras_counts_in_training_is_kept_in_any_precision(here: Path) -> None:
    import torch

    (here / "of_keras.py").write_text(KERAS)
    task = fitted(prepare_spec())
    spec = TrainSpec.parse({"dataset": "d", "model": "m", "network": {"type": "of_keras:net"}}).network
    module = spec.build(task).to(torch.bfloat16).train()
    mean = next(name for name in module.state_dict() if name.endswith("moving_mean"))
    for _ in range(400):
        module(x=torch.tensor([[3.0, -1.0], [5.0, -3.0]], dtype=torch.bfloat16))

    assert module.state_dict()[mean].dtype == torch.bfloat16
    assert module.state_dict()[mean].tolist() == pytest.approx([4, -2], rel=0.3)
