"""Requests for rows of a table, in JSON, in forms and as tensors."""

import asyncio
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray.errors import DataError, RequestError, UnlearntError
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer
from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks.cells import cell, number
from maas_ray.tasks.rows import REST
from maas_ray.tasks.tables.classification import TabularClassification, TabularClassificationSpec
from maas_ray.tasks.tables.networks import Linear
from maas_ray.tasks.tables.regression import TabularRegressionSpec
from tests.support.errors import raises
from tests.support.tables import houses, parsed, request


def test_a_request_may_lack_columns_and_have_unseen_categories() -> None:
    task = houses()
    found = request(task, {"rooms": 3, "mean area": None, "lift": True})
    assert {name: value.item() for name, value in found.items() if name != "mean area"} == {
        "rooms": 3.0,
        "town": "",
        "lift": "true",
    }
    assert math.isnan(found["mean area"])
    assert request(task, {"town": "Paris"})["town"].item() == "Paris"
    assert request(houses(categorical=["rooms"]), {"rooms": 3})["rooms"].item() == "3"


def form(task: Any, row: dict[str, str]) -> dict[str, Any]:
    sent = httpx.Request("POST", "http://test", files=[(name, (None, value)) for name, value in row.items()])
    body = PredictBody(sent.read(), sent.headers["content-type"])
    [found] = asyncio.run(parse_rows(body, task).inputs(task))
    return found


@pytest.mark.parametrize(
    ("of_file", "of_json"), [("True", True), ("FALSE", False), ("1.0", 1.0), ("1", 1), ("2.5", 2.5), ("nan", None)]
)
def test_a_cell_is_the_same_in_files_and_in_requests(of_file: str, of_json: Any) -> None:
    spec = TabularRegressionSpec(target="y", categorical=("a",), fill_categories="unknown")
    task = spec.fit(parsed(spec, [{"y": y, "a": value} for y, value in enumerate([of_file, "x", "true", "1"])]))
    place = task.encode_columns({"a": [cell(of_file)]}, 1)["categories"].item()
    asked = [request(task, {"a": said})["a"].item() for said in (of_file, of_json)]
    tensors = {"a": np.array([*asked, of_file], object)}  # the last as the Open Inference Protocol brings it
    assert task.network_answers(lambda categories: categories, tensors).tolist() == [[place]] * 3
    assert (place > 0) == (of_json is not None)


@pytest.mark.parametrize("value", ["39", " 3.9e1 ", "1_000", "x", "nan", ""])
def test_a_number_is_the_same_in_files_forms_and_json(value: str) -> None:
    task = houses(numeric=["rooms"])
    asked = [lambda: form(task, {"rooms": value}), lambda: request(task, {"rooms": value})]
    try:
        row = task.spec.parse_row({"price": 1, REST: {"rooms": value, "town": "Bonn"}})
    except ValueError:
        for ask in asked:
            with raises(RequestError, "invalid_type", "'rooms'", "number", "string"):
                ask()
    else:
        assert row is not None
        for ask in asked:
            np.testing.assert_equal(ask()["rooms"].item(), number(row["features"]["rooms"]))


def test_a_column_with_the_text_nan_still_holds_numbers() -> None:
    spec = TabularRegressionSpec(target="y")
    task = spec.fit(parsed(spec, [{"y": y, "a": a} for y, a in enumerate(("1", "nan", "3", "NaN"))]))
    assert [(column.name, column.fill) for column in task.features.numbers] == [("a", 2)]


@pytest.mark.parametrize(
    ("row", "message", "param"),
    [
        ({"mean area": "big"}, "Invalid type for 'mean area': expected a number, but got a string instead.", None),
        ({"rooms": True}, "Invalid type for 'rooms': expected a number, but got a boolean instead.", "rooms"),
        ({"town": ["Köln"]}, "Invalid type for 'town': expected a string, but got an array instead.", "town"),
        ({"mean aera": 3}, "Unknown parameter: 'mean aera'.", "mean aera"),
        ([], "Invalid type for the body: expected an object, but got an array instead.", ""),
    ],
)
def test_a_wrong_cell_is_refused_with_its_column(row: Any, message: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        request(houses(), row)
    assert str(caught.value) == message
    assert (caught.value.param or "") == (next(iter(row)) if param is None else param)


def test_requests_may_have_several_rows_or_be_forms() -> None:
    task = houses()
    with raises(RequestError, "invalid_type", "'instances[1].mean area'", "number"):
        request(task, {"instances": [{"rooms": 1}, {"mean area": "x"}]})
    sent = httpx.Request("POST", "http://test", files=[("mean area", (None, "70.5")), ("town", (None, "3"))])
    body = PredictBody(sent.read(), sent.headers["content-type"])
    [found] = asyncio.run(parse_rows(body, task).inputs(task))
    assert (found["mean area"].item(), found["town"].item()) == (70.5, "3")


def test_columns_may_have_any_name() -> None:
    names = [
        "model_fields",
        "model_config",
        "_id",
        "__class__",
        "copy",
        "json",
        "mean area",
        "1",
        "ä",
        "a.b",
        "self",
        "*",
    ]
    table = [dict.fromkeys(names, place) | {"y": place} for place in range(3)]
    spec = TabularRegressionSpec(target="y")
    task = spec.fit(parsed(spec, table))
    found = request(task, {name: place for place, name in enumerate(names)})
    assert {name: value.item() for name, value in found.items()} == {name: place for place, name in enumerate(names)}
    assert {"mean area", "1", "ä", "a.b"} < set(task.request.model_fields)
    for name in names:
        with pytest.raises(RequestError) as caught:
            request(task, {name: "x"})
        assert caught.value.param == name


def test_a_table_may_be_wide() -> None:
    spec = TabularRegressionSpec(target="y")
    task = spec.fit(parsed(spec, [{f"c{place}": place + row for place in range(300)} | {"y": row} for row in (1, 2)]))
    assert len(request(task, {f"c{place}": 1 for place in range(300)})) == 300
    with raises(RequestError, "invalid_value"):
        request(task, {f"c{place}": 1 for place in range(301)})


def infer(task: Any, change: Callable[[list[dict[str, Any]]], None], tail: bytes = b"") -> Any:
    inputs = [
        {"name": "rooms", "datatype": "FP64", "shape": [2], "data": [3, 4.5]},
        {"name": "mean area", "datatype": "FP64", "shape": [2], "data": [70, None]},
        {"name": "town", "datatype": "BYTES", "shape": [2], "data": ["Köln", None]},
        {"name": "lift", "datatype": "BYTES", "shape": [2], "data": ["true", ""]},
    ]
    change(inputs)
    document = json.dumps({"inputs": inputs}).encode()
    return parse_infer(InferBody(document + tail, len(document)), task.inputs, task.outputs).inputs


def test_each_column_is_a_tensor_and_null_is_missing() -> None:
    task = houses()
    assert task.signature()["inputs"][1:3] == [
        {"name": "mean area", "datatype": "FP64", "shape": [-1]},
        {"name": "town", "datatype": "BYTES", "shape": [-1]},
    ]
    found = infer(task, lambda inputs: None)
    np.testing.assert_array_equal(found["mean area"], [70, math.nan])
    assert found["town"].tolist() == ["Köln", ""]

    def as_bytes(inputs: list[dict[str, Any]]) -> None:
        del inputs[1]["data"]
        inputs[1]["parameters"] = {"binary_data_size": 16}

    np.testing.assert_array_equal(infer(task, as_bytes, struct.pack("<2d", 70, math.nan))["mean area"], [70, math.nan])
    model = Linear().build(task).eval()
    assert np.isfinite(task.predict(model, found)["prediction"]).all()
    endless = infer(task, as_bytes, struct.pack("<2d", 70, math.inf))
    with raises(RequestError, "invalid_value", "mean area"):
        task.predict(model, endless)


@pytest.mark.parametrize(
    ("index", "changes", "named"),
    [
        (0, {"data": [3, "x"]}, ("inputs[0].data", "FP64")),
        (0, {"data": [3, 1e999]}, ("JSON",)),
        (2, {"data": ["Köln", 3]}, ("inputs[2].data", "BYTES")),
        (0, {"datatype": "BYTES", "data": ["a", "b"]}, ("inputs[0].datatype", "rooms", "FP64", "'BYTES'")),
        (0, {"name": "floor"}, ("inputs[0]", "'floor'", "rooms, mean area, town, lift")),
    ],
)
def test_a_wrong_tensor_is_refused(index: int, changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        infer(houses(), lambda inputs: inputs[index].update(changes))
    for value in named:
        assert value in str(caught.value)


def test_null_is_refused_in_tensors_that_are_not_optional() -> None:
    from tests.support.bundles import image_task

    task = image_task()
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [None] * 64}
    with pytest.raises(RequestError, match=r"inputs\[0\].*UINT8"):
        parse_infer(InferBody(json.dumps({"inputs": [tensor]}).encode()), task.inputs, task.outputs)


def test_classification_needs_two_labels_and_knows_no_others() -> None:
    spec = TabularClassificationSpec(target="y")
    with raises(DataError, "too_few_labels", "['1']"):
        spec.fit(parsed(spec, [{"y": 1, "a": 2}] * 3))
    task = spec.fit(parsed(spec, [{"y": y, "a": 2} for y in (1, 2)]))
    assert isinstance(task, TabularClassification)
    with raises(UnlearntError, "not_in_training", "'3'"):
        task.encode(parsed(spec, [{"y": 3, "a": 2}]))
