"""Tables: what is fitted and encoded, compared with scikit-learn, and the remarks about their columns."""

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.errors import DataError, InvalidError, SpecError, UnlearntError
from maas_ray.tasks import load_task
from maas_ray.tasks.cells import number, numbers
from maas_ray.tasks.rows import REST
from maas_ray.tasks.tables.classification import TabularClassificationSpec
from maas_ray.tasks.tables.features import Moments
from maas_ray.tasks.tables.regression import TabularRegressionSpec
from tests.support.errors import raises
from tests.support.tables import HOUSES, houses, parsed


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
