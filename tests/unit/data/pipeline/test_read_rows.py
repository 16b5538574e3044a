"""Rows as they are read: their split is decided before cleaning, and equal rows are equal in every file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray import PrepareSpec
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.read_rows import read_rows, reading_of
from maas_ray.data.pipeline.rows import DUPLICATE, KEPT, raw_of
from maas_ray.data.reading import Part, inspect
from maas_ray.data.sources import list_files
from maas_ray.data.splits.hashing import SPLIT_BITS
from tests.unit.data.pipeline.test_packing import settle


def read(spec: PrepareSpec) -> pa.Table:
    """All rows of a spec's sources, ordered and deduplicated as one block."""
    reading, parts = reading_of(spec), []
    for source in spec.sources:
        for file in list_files(source):
            inspected = inspect(source, file, reading.names)
            groups = range(len(inspected.groups)) if inspected.groups else None
            parts.append((len(parts), Part(source, inspected, groups)))
    return settle(pa.concat_tables(read_rows(packed(parts), reading)), exact=spec.drops_duplicates)


def splits_of(rows: pa.Table) -> list[int]:
    return (rows["key"].to_numpy() >> SPLIT_BITS).tolist()


def spec_of(path: Path, **changes: Any) -> PrepareSpec:
    form = {".jsonl": "jsonl", ".csv": "csv"}.get(path.suffix, "parquet")
    return PrepareSpec.parse({"dataset": "d", "sources": [{"format": form, "path": str(path)}], **changes})


@pytest.mark.parametrize("column", ["group", "stratify"])
def test_cleaning_does_not_change_the_value_that_decides_the_split(tmp_path: Path, column: str) -> None:
    """The step masks the addresses; after it, all 60 users have one name."""
    path = tmp_path / "letters.jsonl"
    rows = [{"text": f"letter {number}", "user": f"user{number % 60}@example.com"} for number in range(600)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"task": {"type": "text-generation"}, "splits": {"validation": 0.2, "test": 0.2, column: "user"}}
    plain, masked = read(spec_of(path, **fields)), read(spec_of(path, **fields, clean=[{"step": "pii"}]))

    assert splits_of(masked) == splits_of(plain)
    assert masked["stratum"].to_pylist() == plain["stratum"].to_pylist()
    assert len(set(splits_of(masked))) == (3 if column == "group" else 1)
    assert len(set(masked["stratum"].to_pylist())) == (60 if column == "stratify" else 1)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """The same 200 visits of 50 patients in two files; a missing value makes pandas write floats into the second."""
    visits = [{"patient": n % 50, "age": 20 + n % 7, "risk": n / 4} for n in range(200)]
    directory = tmp_path / "visits"
    directory.mkdir()
    for name, kind in (("a", pa.int64()), ("b", pa.float64())):
        schema = pa.schema({"patient": kind, "age": kind, "risk": pa.float64()})
        table = pa.Table.from_pylist(visits + [{"patient": None, "age": 1, "risk": 0.0}] * (name == "b"), schema)
        pq.write_table(table, directory / f"{name}.parquet")
    return directory


def test_a_group_does_not_depend_on_the_type_of_its_column(patients: Path) -> None:
    task = {"type": "tabular-regression", "target": "risk", "features": ["age", "patient"]}
    splits = {"validation": 0.2, "test": 0.2, "group": "patient"}
    rows = read(spec_of(patients, task=task, splits=splits))

    kept = rows.filter(pa.compute.equal(rows["fate"], KEPT))
    by_patient: dict[int, set[int]] = {}
    for split, shape, payload in zip(
        splits_of(kept), kept["shape"].to_pylist(), kept["payload"].to_pylist(), strict=True
    ):
        by_patient.setdefault(int(raw_of(shape, payload)["patient"]), set()).add(split)
    assert len(kept) == 400
    assert {len(splits) for splits in by_patient.values()} == {1}
    (error,) = {error for error in rows["error"].to_pylist() if error}
    assert error.startswith("patient: ")  # a missing group is quarantined, not a group of its own


def test_equal_rows_of_a_table_stay_and_lie_in_one_split(patients: Path) -> None:
    task = {"type": "tabular-regression", "target": "risk"}
    rows = read(spec_of(patients, task=task, splits={"validation": 0.2, "test": 0.2}))
    by_content: dict[bytes, list[int]] = {}
    for digest, split in zip(rows["digest"].to_pylist(), splits_of(rows), strict=True):
        by_content.setdefault(digest, []).append(split)
    assert Counter(rows["fate"].to_pylist()) == {KEPT: 401}
    assert Counter(map(len, by_content.values())) == {2: 200, 1: 1}
    assert all(len(set(splits)) == 1 for splits in by_content.values())

    rows = read(spec_of(patients, task=task, deduplicate={"exact": True}))
    assert Counter(rows["fate"].to_pylist()) == {KEPT: 201, DUPLICATE: 200}


@pytest.mark.parametrize(
    ("task", "drops"),
    [
        ({"type": "text-generation"}, True),
        ({"type": "image-classification"}, True),
        ({"type": "automatic-speech-recognition"}, True),
        ({"type": "tabular-classification", "target": "y"}, False),
        ({"type": "tabular-regression", "target": "y", "features": ["x"]}, False),
        ({"type": "time-series-forecasting", "target": "y", "context_length": 4, "horizon": 1}, False),
    ],
)
def test_equal_rows_are_duplicates_unless_they_are_observations(task: dict[str, Any], drops: bool) -> None:
    spec = spec_of(Path("in.parquet"), task=task)
    assert spec.drops_duplicates is drops
    for exact in (True, False):
        assert spec_of(Path("in.parquet"), task=task, deduplicate={"exact": exact}).drops_duplicates is exact


def test_cleaning_does_not_join_series(tmp_path: Path) -> None:
    """The step masks the addresses that name the series; 30 users keep a series of 20 steps each."""
    path = tmp_path / "use.jsonl"
    rows = [{"user": f"user{n % 30}@example.com", "day": n // 30, "y": n} for n in range(600)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"type": "time-series-forecasting", "target": "y", "series": "user", "context_length": 4, "horizon": 1}
    fields = {"task": task, "splits": {"validation": 0, "test": 0.25}}
    plain = read(spec_of(path, **fields))
    masked = read(spec_of(path, **fields, clean=[{"step": "pii", "columns": ["user"]}]))

    def series(table: pa.Table) -> list[tuple[int, list[float]]]:
        rows = map(raw_of, table["shape"].to_pylist(), table["payload"].to_pylist())
        return sorted((row["start"], row["values"][:, 0].tolist()) for row in rows)

    assert series(masked) == series(plain)
    assert len(plain) == 60
    assert not any(b"user1@" in payload for payload in masked["payload"].to_pylist())
