"""Tables: what is fitted, what is encoded, what is asked and answered; compared with scikit-learn."""

import asyncio
import json
import math
import struct
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.errors import DataError, InvalidError, RequestError, SpecError, UnlearntError
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer
from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks import load_task
from maas_ray.tasks.cells import category, cell, cell_of, number, numbers
from maas_ray.tasks.rows import REST
from maas_ray.tasks.tables.classification import TabularClassification, TabularClassificationSpec
from maas_ray.tasks.tables.features import Moments
from maas_ray.tasks.tables.networks import Linear, Mlp
from maas_ray.tasks.tables.regression import TabularRegression, TabularRegressionSpec
from maas_ray.tasks.tables.spec import TableSpec
from tests.support.errors import raises

HOUSES = [
    {"rooms": "3", "mean area": "70", "town": "Köln", "lift": "true", "price": "100"},
    {"rooms": "4", "mean area": None, "town": "Bonn", "lift": "false", "price": "200"},
    {"rooms": "5", "mean area": "110", "town": "Köln", "lift": None, "price": "300"},
    {"rooms": None, "mean area": "90", "town": None, "lift": "true", "price": "240"},
    {"rooms": "3", "mean area": "74", "town": "Aachen", "lift": "true", "price": "110"},
]


def parsed(spec: TableSpec, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raws = [{spec.target: row[spec.target]} | _columns(spec, row) for row in table]
    return [row for raw in raws if (row := spec.parse_row(raw)) is not None]


def _columns(spec: TableSpec, row: dict[str, Any]) -> dict[str, Any]:
    """As reading gives them."""
    if spec.features is not None:
        return {name: row[name] for name in spec.features}
    return {REST: {name: value for name, value in row.items() if name != spec.target}}


def houses(**changes: Any) -> TabularRegression:
    spec = TabularRegressionSpec.parse({"type": "tabular-regression", "target": "price"} | changes)
    return spec.fit(parsed(spec, HOUSES))


# --- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, "true"),
        (3, 3.0),
        (Decimal("1.5"), 1.5),
        (math.nan, None),
        (np.float32(2).item(), 2.0),
        (" x ", "x"),
        ("  ", None),
        ("True", "true"),
        (" FALSE", "false"),
        ("nan", None),
        ("-NaN", None),
        ("-", "-"),
        (date(2020, 2, 3), "2020-02-03"),
    ],
)
def test_a_cell_is_a_number_a_text_or_nothing(value: Any, expected: Any) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("value", "code", "named"),
    [
        ([1], "wrong_type", "list"),
        ({"a": 1}, "wrong_type", "dict"),
        (b"\xff", "not_text", "bytes"),
        (math.inf, "not_finite", "infinite"),
    ],
)
def test_a_value_that_cannot_be_a_cell_is_named(value: Any, code: str, named: str) -> None:
    with raises(InvalidError, code, named):
        cell(value)


def test_a_number_that_python_refuses_is_named_with_its_column() -> None:
    with raises(InvalidError, "invalid_number", "'price'"):
        cell_of("price", Decimal("sNaN"))


def test_cells_parse_as_numbers_and_as_categories() -> None:
    assert [number(value) for value in ("1e3", "-2", 0.5)] == [1000, -2, 0.5]
    assert math.isnan(number(None))
    assert [category(value) for value in (1.0, 1.5, "a", None)] == ["1", "1.5", "a", ""]
    assert [category(text) for text in ("1.0", "-20.00", "-0.0", "1.", "1.10", "01.0", ".0", "1.0.0")] == [
        *("1", "-20", "0", "1.", "1.10", "01.0", ".0", "1.0.0")
    ]
    assert category("9" * 400 + ".0") == "9" * 400 + ".0"
    assert category("12345678901234567891.0") == category(12345678901234567891.0)
    assert category(cell(np.int64(12345678901234567))) == "12345678901234567"
    for text in ("1_000", "x", "1,5", "inf", "0x1"):
        with raises(InvalidError, "not_a_number"):
            number(text)


# --- fitting ---------------------------------------------------------------------------------------


def test_columns_are_typed_and_filled_and_scaled_as_by_scikit_learn() -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    task = houses()
    assert [column.name for column in task.features.numbers] == ["rooms", "mean area"]
    assert {column.name: column.categories for column in task.features.categories} == {
        "town": ["Köln", "Aachen", "Bonn"],
        "lift": ["true", "false"],
    }
    raw = np.array([[3, 70], [4, math.nan], [5, 110], [math.nan, 90], [3, 74]])
    for fill, strategy in (("mean", "mean"), ("median", "median"), ("mode", "most_frequent")):
        task = houses(fill_numbers=fill, scale="none")
        encoded = task.encode(parsed(task.spec, HOUSES))
        np.testing.assert_allclose(encoded["numbers"], SimpleImputer(strategy=strategy).fit_transform(raw), rtol=1e-6)
    for scale, scaler in (("standard", StandardScaler()), ("minmax", MinMaxScaler())):
        task = houses(scale=scale)
        encoded = task.encode(parsed(task.spec, HOUSES))
        expected = scaler.fit(raw).transform(SimpleImputer().fit_transform(raw))  # fitted on known values
        np.testing.assert_allclose(encoded["numbers"], expected, rtol=1e-5, atol=1e-6)


def test_missing_and_unseen_categories() -> None:
    rows = [{"town": town, "lift": None} for town in ("Köln", "Bonn", "Paris", None)]
    features = [{"features": row, "target": 1.0} for row in rows]
    assert houses().encode(features)["categories"].tolist() == [[1, 4], [3, 4], [0, 4], [1, 4]]
    unknown = houses(fill_categories="unknown", max_categories=1)
    assert unknown.encode(features)["categories"].tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]


def test_a_spec_says_which_columns_and_what_they_are() -> None:
    task = houses(features=["rooms", "lift"], categorical=["rooms"])
    assert task.spec.columns == ("rooms", "lift", "price")
    assert task.features.numbers == []
    assert task.features.categories[0].categories == ["3", "4", "5"]
    assert set(task.stored) == {"categories", "target"}
    assert [column.name for column in houses(exclude=["town", "lift"]).features.numbers] == ["rooms", "mean area"]
    with raises(InvalidError, "not_a_number", "'town'", "'Köln'"):
        houses(numeric=["town"])
    with raises(DataError, "column_missing", "'floor'", "rooms, mean area, town, lift"):
        houses(numeric=["floor"])


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"features": ["price"]}, "target_in_features", ("features:", "'price'")),
        ({"features": ["rooms"], "exclude": ["town"]}, "conflicting_fields", ("exclude:", "`features`")),
        ({"numeric": ["a"], "categorical": ["a"]}, "conflicting_fields", ("categorical: 'a'", "`numeric`")),
        ({"exclude": ["a", "a"]}, "duplicate_column", ("exclude: 'a'",)),
        ({"features": ["rooms"], "numeric": ["town"]}, "unknown_column", ("numeric", "'town'")),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict[str, Any], code: str, named: tuple[str, ...]) -> None:
    with raises(SpecError, code, *named):
        TabularRegressionSpec.parse({"target": "price"} | changes)


def test_rows_without_target_or_cells_are_empty_and_malformed_cells_are_named() -> None:
    spec = TabularRegressionSpec(target="y")
    assert spec.parse_row({"y": None, REST: {"a": 1}}) is None
    assert spec.parse_row({"y": 1, REST: {"a": None, "b": ""}}) is None
    with raises(InvalidError, "wrong_type", "column 'a'", "list", "`exclude`"):
        spec.parse_row({"y": 1, REST: {"a": [1]}})
    with raises(InvalidError, "not_a_number", "target 'y'", "'dear'"):
        spec.parse_row({"y": "dear", REST: {"a": 1}})
    task = houses()
    with raises(UnlearntError, "not_in_training", "column 'rooms'"):
        task.encode([{"features": {"rooms": "many"}, "target": 1.0}])
    with raises(DataError, "column_empty", "column 'b'", "`exclude`"):
        spec.fit(parsed(spec, [{"y": "1", "a": "2", "b": None}] * 2))


def test_moments_of_batches_equal_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(1e9, 3, (1000, 2))
    values[::7, 1] = math.nan
    moments = Moments(2)
    for part in np.array_split(values, 13):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, np.nanmean(values, 0), rtol=1e-14)
    np.testing.assert_allclose(moments.std, np.nanstd(values - 1e9, 0), rtol=1e-6)
    np.testing.assert_array_equal(moments.max, np.nanmax(values, 0))


def test_statistics_use_the_first_rows_and_labels_all_rows() -> None:
    def rows(count: int) -> Iterator[dict[str, Any]]:
        for place in range(count):
            late = place >= 10_000
            features = {"a": 5.0 if late else float(place % 2), "b": "late" if late else "early"}
            yield {"features": features, "target": 9.0 if late else float(place % 3)}

    task = TabularRegressionSpec(target="y", fit_rows=10_000).fit(rows(10_500))
    assert task.features.numbers[0].center == 0.5
    assert task.features.categories[0].categories == ["early"]
    assert task.target.mean == pytest.approx(np.mean(np.arange(10_000) % 3), rel=1e-12)
    whole = TabularRegressionSpec(target="y").fit(rows(10_500))
    assert whole.features.categories[0].categories == ["early", "late"]
    assert whole.target.mean == pytest.approx((9999 + 9 * 500) / 10_500)
    named = ({**row, "target": str(row["target"])} for row in rows(10_500))
    assert TabularClassificationSpec(target="y", fit_rows=10_000).fit(named).labels == ["0.0", "1.0", "2.0", "9.0"]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("1_000", "not_a_number"),
        ("x", "not_a_number"),
        ("inf", "not_a_number"),
        ("", "not_a_number"),
        (10**400, "number_too_large"),
    ],
    ids=["underscore", "word", "infinity", "empty", "large"],
)
def test_a_list_of_numbers_refuses_what_a_single_number_refuses(value: Any, code: str) -> None:
    with raises(InvalidError, code):
        number(value)
    with raises(InvalidError, code):
        numbers([1, "2", value])


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(allow_infinity=False), st.floats().map(str))))
def test_a_list_of_numbers_is_parsed_like_single_numbers(values: list[Any]) -> None:
    values = [value for value in values if value not in ("inf", "-inf")]
    np.testing.assert_array_equal(numbers(values), np.array([number(value) for value in values], np.float64))


@pytest.mark.parametrize("kind", [TabularRegressionSpec, TabularClassificationSpec])
def test_a_saved_task_encodes_the_same(kind: Any, tmp_path: Path) -> None:
    spec = kind(target="price", features=("rooms", "mean area", "town"))
    rows = parsed(spec, HOUSES)
    task = spec.fit(rows)
    task.save(tmp_path)
    loaded = load_task(tmp_path)
    assert loaded.spec == spec
    assert "optional" not in (tmp_path / "task.json").read_text()
    assert loaded.signature() == task.signature() == json.loads((tmp_path / "task.json").read_text())["signature"]
    for name, values in task.encode(rows).items():
        np.testing.assert_array_equal(loaded.encode(rows)[name], values)
        assert (values.dtype.name, values.shape[1:]) == (task.stored[name].dtype, task.stored[name].shape)


# --- learning --------------------------------------------------------------------------------------


def trained(task: Any, network: Any, stored: dict[str, np.ndarray]) -> Any:
    """The network at the optimum of its loss."""
    import torch

    torch.manual_seed(0)
    model = network.build(task)
    batch = task.collate(stored)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = task.loss(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.eval()


def diabetes() -> tuple[TabularRegression, list[dict[str, Any]]]:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    spec = TabularRegressionSpec(target="y", categorical=("sex",))
    rows = parsed(
        spec,
        [
            dict(zip(data.feature_names, map(float, values), strict=True)) | {"y": float(target)}
            for values, target in zip(data.data, data.target, strict=True)
        ],
    )
    return spec.fit(rows), rows


def test_the_linear_network_is_linear_regression() -> None:
    import torch
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    task, rows = diabetes()
    stored = task.encode(rows)
    model = trained(task, Linear(), stored)
    data = load_diabetes(scaled=False)
    expected = LinearRegression().fit(data.data, data.target).predict(data.data)
    with torch.inference_mode():
        outcomes = task.outcomes(model, task.collate(stored))
    np.testing.assert_allclose(outcomes["prediction"], expected, rtol=2e-3)
    np.testing.assert_array_equal(outcomes["target"], data.target)
    found = task.metrics(outcomes)
    assert found["loss"] == pytest.approx(mean_squared_error(data.target, expected) / data.target.var(), rel=1e-3)
    assert found["mse"] == pytest.approx(mean_squared_error(data.target, outcomes["prediction"]))
    assert found["mae"] == pytest.approx(mean_absolute_error(data.target, outcomes["prediction"]))
    assert found["r2"] == pytest.approx(r2_score(data.target, outcomes["prediction"]))

    # Requests by column name give the same numbers.
    asked = [request(task, row["features"]) for row in rows[:5]]
    inputs = {name: np.stack([row[name] for row in asked]) for name in asked[0]}
    answer = task.predict(model, inputs)
    np.testing.assert_allclose(answer["prediction"], outcomes["prediction"][:5], rtol=1e-6)
    assert task.to_answer({"prediction": answer["prediction"][0]}).model_dump() == {
        "prediction": answer["prediction"][0]
    }


def test_the_linear_network_is_logistic_regression() -> None:
    import torch
    from sklearn.datasets import load_wine
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import StandardScaler

    data = load_wine()
    spec = TabularClassificationSpec(target="grower", features=("alcohol", "hue"))
    rows = [
        {"features": {"alcohol": alcohol, "hue": hue}, "target": str(label)}
        for alcohol, hue, label in zip(data.data[:, 0], data.data[:, 10], data.target, strict=True)
    ]
    task = spec.fit(rows)
    assert task.labels == ["0", "1", "2"]
    stored = task.encode(rows)
    model = trained(task, Linear(), stored)
    with torch.inference_mode():
        outcomes = task.outcomes(model, task.collate(stored))
    scaled = StandardScaler().fit_transform(data.data[:, [0, 10]])
    expected = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, data.target).predict_proba(scaled)
    np.testing.assert_allclose(outcomes["scores"], expected, atol=2e-3)
    found = task.metrics(outcomes)
    assert found["f1"] == pytest.approx(f1_score(data.target, outcomes["scores"].argmax(1), average="macro"))
    assert {"loss", "accuracy", "precision", "recall", "roc_auc"} < set(found)
    answer = task.to_answer({"label": "1", "scores": np.float32([0.1, 0.7, 0.2])})
    assert answer.model_dump() == {"label": "1", "scores": {"0": 0.1, "1": 0.7, "2": 0.2}}


def test_a_perceptron_memorises_a_small_table() -> None:
    import torch

    task, rows = diabetes()
    rows = rows[:64]
    network = Mlp(hidden_sizes=(1000, 500, 250, 100))
    widths = [parameter.shape for name, parameter in network.skeleton(task).named_parameters() if "weight" in name]
    assert [tuple(width) for width in widths] == [
        (1000, 9),
        (3, 1000),
        (500, 1000),
        (250, 500),
        (100, 250),
        (1, 100),
    ]
    stored = task.encode(rows)
    torch.manual_seed(0)
    model = network.build(task)
    batch = task.collate(stored)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    with torch.inference_mode():
        assert task.metrics(task.outcomes(model.eval(), batch))["r2"] > 0.95


def test_what_training_has_not_seen_adds_nothing() -> None:
    import torch

    task = houses(features=["town"])
    model = trained(task, Linear(), task.encode(parsed(task.spec, HOUSES)))
    with torch.inference_mode():
        assert model(categories=torch.tensor([[0]])) == model.columns.bias
        assert model(categories=torch.tensor([[2]])) != model.columns.bias


# --- requests --------------------------------------------------------------------------------------


def request(task: Any, row: Any) -> dict[str, Any]:
    body = PredictBody(json.dumps(row).encode(), "application/json")
    [found] = asyncio.run(parse_rows(body, task).inputs(task))
    return found


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


# --- the Open Inference Protocol -------------------------------------------------------------------


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


# --- remarks ---------------------------------------------------------------------------------------


def test_a_text_that_turns_numbers_into_categories_is_said() -> None:
    rows = [{"power": "?" if n == 7 else n % 79, "code": f"k{n % 5}", "size": n, "y": n} for n in range(400)]
    spec = TabularRegressionSpec(target="y", features=("power", "code", "size"))
    task = spec.fit(filter(None, map(spec.parse_row, rows)))
    (remark,) = task.remarks
    assert "'power'" in remark
    assert "80 categories, because '?' is not a number" in remark
    assert "`numeric: [power]`" in remark

    spec = TabularRegressionSpec(target="y", features=("power", "code", "size"), categorical=("power",))
    assert not spec.fit(filter(None, map(spec.parse_row, rows))).remarks


def test_numbers_as_people_write_them_are_said_to_be_categories() -> None:
    rows = [
        {
            "comma": f"{n},5",
            "thousands": f"{n},000" if n > 200 else n,
            "price": f"$ {n}.50",
            "date": f"2024-01-{n:02}",
            "y": n,
        }
        for n in range(400)
    ]
    spec = TabularRegressionSpec(target="y", features=("comma", "thousands", "price", "date"))
    remarks = spec.fit(filter(None, map(spec.parse_row, rows))).remarks
    assert [remark.split("'")[1] for remark in remarks] == ["comma", "thousands", "price"]
    assert all("`decimal: ','`" in remark for remark in remarks)


def test_durations_are_seconds_and_uuids_are_texts() -> None:
    row = {"took": timedelta(minutes=2, milliseconds=500), "id": UUID(int=7), "y": 1}
    spec = TabularRegressionSpec(target="y", features=("took", "id"))
    features = {"took": 120.5, "id": "00000000-0000-0000-0000-000000000007"}
    assert spec.parse_row(row) == {"features": features, "target": 1.0}


def test_an_excluded_column_is_not_read() -> None:
    assert TabularRegressionSpec(target="y", exclude=("id", "y")).drops == ("id",)
