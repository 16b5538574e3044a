"""Forecasting: windows and their features, learning, requests and answers."""

import asyncio
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_ray.errors import DataError, RequestError, SpecError
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer
from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks import load_task
from maas_ray.tasks.tables.forecasting import filled
from maas_ray.tasks.tables.networks import Recurrent
from tests.support.errors import raises
from tests.support.series import fitted, spec_of

# --- features --------------------------------------------------------------------------------------


def test_missing_values_are_filled_with_the_last_known_ones() -> None:
    nan = math.nan
    values = np.array([[nan, 1], [2, nan], [nan, nan], [5, 4], [nan, nan]])
    np.testing.assert_array_equal(filled(values), [[2, 1], [2, 1], [2, 1], [5, 4], [5, 4]])


def test_windows_and_what_they_are_normalised_by() -> None:
    task = fitted([np.arange(10.0) * 3 + 100, np.arange(10.0)], covariates=["x"], stride=2)
    rows = [{"values": np.stack([np.arange(10.0) * 3 + 100, np.arange(10.0)], axis=1)}]
    stored = task.encode(rows)
    assert stored["context"].shape == (3, 4, 2)
    np.testing.assert_array_equal(stored["target"], [[112, 115], [118, 121], [124, 127]])
    np.testing.assert_array_equal(stored["context"][1, :, 1], [2, 3, 4, 5])
    for name, column in task.stored.items():
        assert (stored[name].dtype.name, stored[name].shape[1:]) == (column.dtype, column.shape)

    batch = task.collate(stored)
    level, spread = np.mean(rows[0]["values"][:, 0]), np.std(rows[0]["values"][:, 0])
    np.testing.assert_allclose(batch["context"][..., 0], (stored["context"][..., 0] - level) / spread, rtol=1e-5)
    np.testing.assert_allclose(batch["naive"], [3, 3, 3])

    own = fitted([np.arange(10.0)], normalize="context", season=2)
    batch = own.collate(own.encode([{"values": 1e6 * np.arange(10.0)[:, None] + 1e9}]))
    np.testing.assert_allclose(batch["context"].mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(batch["context"].std(1, correction=0), 1, rtol=1e-6)
    np.testing.assert_allclose(batch["naive"], 2e6)
    flat = own.collate({"context": np.full((1, 4, 1), 7.0)})
    assert flat["context"].tolist() == [[[0.0]] * 4]


def test_a_task_loads_as_it_was_saved(tmp_path: Path) -> None:
    task = fitted([np.arange(10.0)], season=2)
    task.save(tmp_path)
    loaded = load_task(tmp_path)
    assert (loaded.spec, loaded.features) == (task.spec, task.features)  # type: ignore[attr-defined]
    assert loaded.signature() == {
        "inputs": [{"name": "values", "datatype": "FP64", "shape": [-1, 4, 1]}],
        "outputs": [{"name": "forecast", "datatype": "FP64", "shape": [-1, 2]}],
    }


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"covariates": ["y"]}, "duplicate_column", ("'y'",)),
        ({"season": 4}, "season_too_long", ("season (4)", "context_length (4)")),
        ({"time_format": "%d/%m/%Y"}, "time_missing", ("time_format",)),
        ({"time": "t", "time_format": "dd/mm/yyyy"}, "invalid_time_format", ("'dd/mm/yyyy'",)),
        ({"horizon": 0}, "greater_than_equal", ("horizon",)),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict[str, Any], code: str, named: tuple[str, ...]) -> None:
    with raises(SpecError, code, *named):
        spec_of(**changes)


def test_fitting_refuses_series_that_are_all_too_short() -> None:
    with raises(DataError, "series_too_short", 6, 5):
        fitted([np.arange(5.0)])


# --- learning --------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other at each small step cost more than they do where the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("cell", "normalize"), [("rnn", "global"), ("gru", "context"), ("lstm", "global")])
def test_a_network_learns_a_wave(cell: str, normalize: str) -> None:
    import torch
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    wave = 50 + 10 * np.sin(np.arange(160) / 3)
    task = fitted([wave, np.cos(np.arange(160) / 3)], covariates=["x"], context_length=12, normalize=normalize)
    stored = task.encode([{"values": np.stack([wave, np.cos(np.arange(160) / 3)], axis=1)}])
    torch.manual_seed(0)
    network = Recurrent(cell=cell, hidden_size=16, layers=2)
    model = network.build(task)
    batch = task.collate(stored)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        outcomes = task.outcomes(model.eval(), batch)
    found = task.metrics(outcomes)
    assert found["r2"] > 0.98
    assert found["mase"] < 0.3
    np.testing.assert_array_equal(outcomes["target"], stored["target"])
    assert found["mse"] == pytest.approx(mean_squared_error(stored["target"], outcomes["prediction"]))
    assert found["mae"] == pytest.approx(mean_absolute_error(stored["target"], outcomes["prediction"]))
    with torch.inference_mode():
        assert found["loss"] == pytest.approx(float(task.loss(model, batch)), rel=1e-5)

    # A request gives the same numbers, and steps before the context do not matter.
    long = [[0.0, 0.0], *np.concatenate([stored["context"][5]]).tolist()]
    asked = request(task, {"values": long})
    answer = task.predict(model, {"values": asked["values"][None]})
    np.testing.assert_allclose(answer["forecast"][0], outcomes["prediction"][5], rtol=1e-6)
    assert task.to_answer({"forecast": answer["forecast"][0]}).model_dump() == {
        "forecast": answer["forecast"][0].tolist()
    }


def test_mase_is_in_units_of_the_naive_forecast() -> None:
    task = fitted([np.arange(10.0)])
    outcomes = {
        "loss": np.zeros(3),
        "target": np.array([[4.0, 5.0], [1.0, 1.0], [2.0, 8.0]]),
        "prediction": np.array([[4.0, 7.0], [1.0, 1.0], [3.0, 8.0]]),
        "naive": np.array([2.0, 0.0, 1.0]),
    }
    assert task.metrics(outcomes)["mase"] == pytest.approx((1 / 2 + 0.5 / 1) / 2)
    assert "mase" not in task.metrics(outcomes | {"naive": np.zeros(3)})


# --- requests --------------------------------------------------------------------------------------


def request(task: Any, row: Any) -> dict[str, Any]:
    body = PredictBody(json.dumps(row).encode(), "application/json")
    [found] = asyncio.run(parse_rows(body, task).inputs(task))
    return found


def test_a_request_gives_steps_as_numbers_or_as_lists() -> None:
    task = fitted([np.arange(10.0)])
    for values in ([1, 2, None, 4], [[1], [2], [None], [4]], [9, 1, 2, None, 4]):
        np.testing.assert_array_equal(request(task, {"values": values})["values"], [[1], [2], [math.nan], [4]])


@pytest.mark.parametrize(
    ("values", "code", "named"),
    [
        ([1, 2, 3], "invalid_value", ("values: ", 3, 4)),
        ([1, 2, 3, "x"], "invalid_type", ("'values[3]'", "number or an array", "string")),
        ([1, 2, 3, [1, 2]], "invalid_value", ("values[3]: ", 2, "1: y")),
        ([], "invalid_value", ("'values'", 1)),
        ("1, 2", "invalid_type", ("'values'", "array")),
    ],
)
def test_a_wrong_series_is_refused_with_its_field(values: Any, code: str, named: tuple[Any, ...]) -> None:
    with raises(RequestError, code, *named):
        request(fitted([np.arange(10.0)]), {"values": values})


def test_tensors_may_hold_null_but_not_infinity_or_a_column_of_nulls() -> None:
    task = fitted([np.arange(10.0)])
    model = Recurrent(hidden_size=4).build(task).eval()
    tensor = {"name": "values", "datatype": "FP64", "shape": [1, 4, 1], "data": [[[1], [None], [3], [4]]]}

    def infer(tail: bytes = b"") -> dict[str, np.ndarray]:
        document = json.dumps({"inputs": [tensor]}).encode()
        return parse_infer(InferBody(document + tail, len(document)), task.inputs, task.outputs).inputs

    expected = task.predict(model, {"values": np.array([[[1.0], [1.0], [3.0], [4.0]]])})
    np.testing.assert_array_equal(task.predict(model, infer())["forecast"], expected["forecast"])
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": 32}
    for value, why in ((math.inf, "finite"), (math.nan, "null")):
        with raises(RequestError, "invalid_value", "values", why):
            task.predict(model, infer(struct.pack("<4d", *[value] * 4)))
