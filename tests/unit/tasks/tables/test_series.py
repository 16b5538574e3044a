"""Series: how a table's steps are ordered, joined, cut and held out."""

import json
import math
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.read_rows import Reading, read_rows
from maas_ray.data.reading import Part, Raw, inspect
from maas_ray.data.sources import CsvSource, JsonlSource, list_files
from maas_ray.data.splits import series
from maas_ray.data.splits.series import joined
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import InvalidError
from maas_ray.tasks.tables.forecasting import TimeSeriesForecastingSpec
from tests.support.errors import raises
from tests.support.series import fitted, spec_of
from tests.unit.data.pipeline.test_packing import run

SHARES = (0.1, 0.2)


def stretches(table: list[dict[str, Any]], spec: TimeSeriesForecastingSpec) -> list[Raw]:
    raws = [Raw("t.csv", place, {name: row[name] for name in spec.columns}) for place, row in enumerate(table)]
    return list(joined(iter(raws), spec.steps, SHARES))


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
