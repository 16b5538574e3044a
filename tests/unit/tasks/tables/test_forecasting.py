"""Series: how a table's steps are joined and held out, windows, what is asked and answered."""

import asyncio
import json
import math
import struct
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_ray.data.pipeline import series
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.pipeline.series import joined
from maas_ray.data.reading import Part, Raw, inspect
from maas_ray.data.sources import CsvSource, JsonlSource, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import DataError, InvalidError, RequestError, SpecError
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer
from maas_ray.serve.api.predict import PredictBody, parse_rows
from maas_ray.tasks import load_task
from maas_ray.tasks.tables.forecasting import TimeSeriesForecasting, TimeSeriesForecastingSpec, filled
from maas_ray.tasks.tables.networks import Recurrent
from tests.support.errors import raises
from tests.unit.data.pipeline.test_packing import run

SHARES = (0.1, 0.2)


def spec_of(**changes: Any) -> TimeSeriesForecastingSpec:
    fields = {"target": "y", "context_length": 4, "horizon": 2} | changes
    return TimeSeriesForecastingSpec.parse(fields)


def fitted(values: Any, **changes: Any) -> TimeSeriesForecasting:
    spec = spec_of(**changes)
    return spec.fit([spec.parse_row({name: list(column) for name, column in zip(spec.channels, values, strict=True)})])


def stretches(table: list[dict[str, Any]], spec: TimeSeriesForecastingSpec) -> list[Raw]:
    raws = [Raw("t.csv", place, {name: row[name] for name in spec.columns}) for place, row in enumerate(table)]
    return list(joined(iter(raws), spec.steps, SHARES))


# --- joining ---------------------------------------------------------------------------------------


def test_steps_are_joined_in_time_and_the_end_of_each_series_is_held_out() -> None:
    table = [
        {"shop": shop, "day": f"2024-{1 + day // 28:02}-{1 + day % 28:02}", "y": str(100 * shop + day), "x": day % 7}
        for day in np.random.default_rng(0).permutation(40)
        for shop in (1, 2)
    ]
    found = stretches(table, spec_of(series="shop", time="day", covariates=["x"]))
    assert [(raw.split, raw.row["series"], raw.row["start"], raw.rows) for raw in found if raw.row] == [
        (0, "1", 0, 28),
        (1, "1", 28, 4),
        (2, "1", 32, 8),
        (0, "2", 0, 28),
        (1, "2", 28, 4),
        (2, "2", 32, 8),
    ]
    whole = np.concatenate([raw.row["values"] for raw in found if raw.row])
    days = np.tile(np.arange(40), 2)
    np.testing.assert_array_equal(whole, np.stack([np.repeat([100, 200], 40) + days, days % 7], axis=1))


@pytest.mark.parametrize("split", range(3))
def test_all_steps_fall_into_the_split_that_their_source_names(split: int) -> None:
    spec = spec_of(series="shop")
    raws = [Raw("t.csv", place, {"shop": place % 2, "y": place}, split=split) for place in range(40)]
    raws.append(Raw("t.csv", 40, error="broken", split=split))
    found = list(joined(iter(raws), spec.steps, SHARES))
    assert [(raw.split, raw.row["series"], raw.rows) for raw in found if raw.row] == [
        (split, "0", 20),
        (split, "1", 20),
    ]
    assert [raw.error for raw in found if raw.row is None] == ["broken"]


def test_steps_are_ordered_by_numeric_time_or_else_as_in_the_file() -> None:
    table = [{"t": str(t), "y": t} for t in (10, 9, 100, 2)]
    values = [raw.row["values"][:, 0].tolist() for raw in stretches(table, spec_of(time="t")) if raw.row]
    assert values == [[2, 9, 10], [100]]
    values = [raw.row["values"][:, 0].tolist() for raw in stretches(table, spec_of()) if raw.row]
    assert values == [[10, 9, 100], [2]]


DAYS = [date(2023, 11, 1) + timedelta(days=10 * step) for step in range(12)]


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d.%m.%Y", "%d/%m/%y", "%b-%d-%Y", "%Y%m%d"])
def test_steps_are_ordered_by_instants_whatever_their_format(form: str) -> None:
    table = [{"t": day.strftime(form), "y": step} for step, day in enumerate(DAYS)]
    shuffled = [table[step] for step in np.random.default_rng(0).permutation(len(table))]
    values = [
        raw.row["values"][:, 0].tolist() for raw in stretches(shuffled, spec_of(time="t", time_format=form)) if raw.row
    ]
    assert values == [list(range(9)), [9], [10, 11]]


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d.%m.%Y", "%b-%d-%Y"])
def test_a_text_that_is_no_iso_date_is_refused_and_named(form: str) -> None:
    table = [{"t": day.strftime(form), "y": step} for step, day in enumerate(DAYS)]
    errors = [raw.error for raw in stretches(table, spec_of(time="t"))]
    assert len(errors) == len(DAYS)
    for error, row in zip(errors, table, strict=True):
        assert repr(row["t"]) in error
        assert "time_format" in error


# Paris leaves summer time at 03:00+02:00 on 2024-10-27; from there the clock shows 02:00 again.
PARIS = ["01:30:00+02:00", "02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00", "03:00:00+01:00"]


@pytest.mark.parametrize("typed", [False, True])
def test_times_with_offsets_are_compared_as_instants(typed: bool) -> None:
    texts = [f"2024-10-27T{clock}" for clock in PARIS]
    table = [{"t": datetime.fromisoformat(t) if typed else t, "y": step} for step, t in enumerate(texts)]
    found = stretches([table[step] for step in (3, 0, 5, 1, 4, 2)], spec_of(time="t"))
    assert [raw.row["values"][:, 0].tolist() for raw in found if raw.row] == [[0, 1, 2, 3], [4], [5]]

    again = stretches(
        [{"t": "2024-10-27T02:30:00+02:00", "y": 0}, {"t": "2024-10-27T00:30Z", "y": 1}], spec_of(time="t")
    )
    assert [raw.error.partition(" twice")[0] for raw in again if raw.error] == ["column 't' has '2024-10-27T00:30Z'"]
    mixed = stretches([{"t": "2024-10-27T02:30", "y": 0}, {"t": "2024-10-27T00:30Z", "y": 1}], spec_of(time="t"))
    assert [raw.position for raw in mixed if raw.error] == [1]


def test_lists_of_a_whole_series_are_ordered_by_their_times() -> None:
    spec = spec_of(time="t", time_format="%d/%m/%Y", covariates=["x"])
    parsed = spec.parse_row({"y": [3, 1, 2], "x": [30, 10, 20], "t": ["01/02/2024", "30/01/2024", "31/01/2024"]})
    assert parsed is not None
    assert parsed["values"].tolist() == [[1, 10], [2, 20], [3, 30]]
    for times in (["01/02/2024"], ["01/02/2024", "01/02/2024", "02/02/2024"], ["01/02/2024", None, "02/02/2024"]):
        with raises(InvalidError, "invalid_times", "'t'"):
            spec.parse_row({"y": [3, 1, 2], "x": [30, 10, 20], "t": times})
    assert spec.parse_row({"y": [3, 1], "x": [4, 5], "t": "2024"})["values"].tolist() == [[3, 4], [1, 5]]  # type: ignore[index]


def test_a_broken_step_is_quarantined_and_counts_as_missing_in_its_series() -> None:
    table: list[dict[str, Any]] = [{"t": t, "y": t} for t in range(10)]
    table[3]["y"] = "n/k"
    table[5]["y"] = None
    table[6]["t"] = 2
    table[7]["t"] = None
    table[8]["t"] = "later"
    found = stretches(table, spec_of(time="t"))
    assert [(raw.position, raw.error) for raw in found if raw.error] == [
        (3, "column 'y': 'n/k' is not a number"),
        (
            6,
            "column 't' has '2' twice in one series; name the column that tells series apart in `series`, and write "
            "local times with their UTC offsets",
        ),
        (7, "column 't' does not say when this step was"),
        (
            8,
            "column 't' holds 'later', which is neither a number nor an ISO 8601 date; give its format, such as "
            "`time_format: '%d/%m/%Y %H:%M'`",
        ),
    ]
    rows = [raw for raw in found if raw.row]
    assert sum(raw.rows for raw in found) == 10
    values = np.concatenate([raw.row["values"][:, 0] for raw in rows if raw.row])
    np.testing.assert_array_equal(values, [0, 1, 2, math.nan, 4, math.nan, 9])


def test_long_series_are_cut_and_no_step_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_STEPS", 16)
    found = stretches([{"y": place} for place in range(100)], spec_of())
    assert [(raw.split, raw.rows) for raw in found] == [(0, 16), *[(0, 11)] * 4, (0, 10), (1, 10), (2, 16), (2, 4)]
    values = [raw.row["values"][:, 0] for raw in found if raw.row]
    np.testing.assert_array_equal(np.unique(np.concatenate(values)), np.arange(100))
    assert [steps[[0, -1]].tolist() for steps in values[-3:]] == [[70, 79], [80, 95], [91, 99]]


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 6, 7, 40])
@pytest.mark.parametrize("context", [4, 9, 30])
def test_where_a_series_is_cut_no_window_is_lost_or_there_twice(
    stride: int, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "MAX_STEPS", 16)
    spec = spec_of(context_length=context, stride=stride)
    task = fitted([range(context + 2)], context_length=context, stride=stride)
    for length in (context + 2, *range(60, 90), 200):
        raws = [Raw("t.csv", place, {"y": place}) for place in range(length)]
        found = list(joined(iter(raws), spec.steps, (0.0, 0.0)))
        assert sum(raw.rows for raw in found) == length
        starts = [task.encode([raw.row])["context"][:, 0, 0] for raw in found if raw.row]
        np.testing.assert_array_equal(np.concatenate(starts), range(0, length - context - 1, stride))


def test_the_tail_of_a_long_series_is_learnt_from(tmp_path: Path) -> None:
    """Ten steps more than a stretch is long are too few to be one."""
    path = tmp_path / "in.csv"
    path.write_text("\n".join(["y", *map(str, range(series.MAX_STEPS + 10))]))
    spec = spec_of(context_length=20, horizon=5)
    result = run(CsvSource(path=str(path)), spec, tmp_path / "out", cut=1, shares=(0.0, 0.0))
    assert result.sizes.rows["train"] == series.MAX_STEPS + 10
    assert result.sizes.elements["train"] == series.MAX_STEPS + 10 - 24
    assert result.sizes.dropped == {}


def test_a_row_of_lists_is_a_whole_series() -> None:
    spec = spec_of(covariates=["x"], series="id")
    (raw,) = stretches([{"y": [1, None, "3"], "x": (4, 5, 6), "id": 7}], spec)  # type: ignore[list-item]
    assert raw.split is None
    assert raw.row is not None
    parsed = spec.parse_row(raw.row)
    assert parsed is not None
    assert parsed["series"] == "7"
    np.testing.assert_array_equal(parsed["values"], [[1, 4], [1, 5], [3, 6]])
    with raises(InvalidError, "length_mismatch", "1 and 2"):
        spec.parse_row({"y": [1], "x": [1, 2], "id": 1})
    with raises(InvalidError, "wrong_type", "'x'", "'y'"):
        spec.parse_row({"y": [1], "x": 1, "id": 1})
    assert spec.parse_row({"y": [None, None], "x": [1, 2], "id": 1}) is None
    assert spec.parse_row({"y": [], "x": [], "id": 1}) is None


def test_windows_of_a_file_reach_the_dataset_however_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    rng = np.random.default_rng(0)
    lines = [f"{shop},{day},{rng.normal():.3f}" for shop in "abc" for day in range(50)]
    path.write_text("\n".join(["shop,day,y", *lines, "a,50,bad", "a,x,1"]))
    spec = spec_of(series="shop", time="day")
    source = CsvSource(path=str(path))
    results = [run(source, spec, tmp_path / f"{cut}", cut=cut, shares=SHARES) for cut in (1, 3)]
    for result in results:
        # The value that is bad leaves its step to series a; the time that is bad does not.
        assert result.sizes.rows == {"train": 36 + 35 + 35, "validation": 0, "test": 9 + 10 + 10}
        assert result.sizes.elements == {"train": 31 + 30 + 30, "validation": 0, "test": 3 * 5}
        [(reason, rows)] = result.sizes.dropped.items()
        assert ("shorter than context_length + horizon" in reason, rows) == (True, 15)
        train, test = (
            np.concatenate([result.columns[split]["context"][..., 0], result.columns[split]["target"]], axis=1)
            for split in ("train", "test")
        )
        assert not set(train.ravel()) & set(test.ravel())
        ours = {tuple(window) for window in train}
        values = np.array([float(line.split(",")[2]) for line in lines]).reshape(3, 50)
        windows = {(shop, start) for shop in range(3) for start in range(30)} | {(0, 30)}
        assert ours == {tuple(values[shop, start : start + 6]) for shop, start in windows}
        assert len(np.unique(result.columns["train"]["position"])) == 91
    for split in ("train", "test"):
        np.testing.assert_array_equal(
            results[0].columns[split]["target"], results[1].columns[split]["target"], err_msg=split
        )


def test_every_row_of_a_series_is_kept_or_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"y": value}) for value in [*range(40), "x", None, [1.0, 2.0], [3]]))
    source = JsonlSource(path=str(path))
    (file,) = list_files(source)
    found = inspect(source, file, ("y",))
    (table,) = read_rows(
        packed([(0, Part(source, found))]),
        Reading(spec_of(), Splits(validation=SHARES[0], test=SHARES[1])),
    )
    counts = dict.fromkeys(("", "quarantined"), 0)
    for row in table.to_pylist():
        counts[row["fate"]] += row["rows"]
    assert counts == {"": 43, "quarantined": 1}
    assert sum(counts.values()) == found.rows == 44


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
