"""Columns that a task reads if a source has them, in every format of tables."""

import csv
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from maas_ray.data.pipeline.read_rows import Reading
from maas_ray.data.reading import Part, inspect, read
from maas_ray.data.sources import AnySource
from maas_ray.data.spec import PrepareSpec
from maas_ray.data.splits.spec import Splits
from maas_ray.tasks.text.chat_layouts import chat_of

ROW = {"instruction": "Add.", "output": "3", "other": "not read"}


def jsonl(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps(row) + "\n")
    return {"format": "jsonl"}


def parquet(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    pa.parquet.write_table(pa.Table.from_pylist([row]), path)
    return {"format": "parquet"}


def arrow(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    pa.feather.write_feather(pa.Table.from_pylist([row]), path)
    return {"format": "arrow"}


def table(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    return {"format": "csv"}


def sql(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE rows ({', '.join(row)})")
        connection.execute(f"INSERT INTO rows VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
    return {"format": "sql", "uri": f"sqlite:///{path}", "table": "rows"}


FORMATS = [jsonl, parquet, arrow, table, sql]


def first_row(write: Callable[..., dict[str, Any]], path: Path, row: dict[str, Any], **fields: Any) -> Any:
    source = {"path": str(path), **write(path, row), **fields}
    if source["format"] == "sql":
        del source["path"]
    task = {"type": "text-generation", "column": "instruction"}
    spec = PrepareSpec.parse({"dataset": "d", "task": task, "sources": [source]}, source="spec")
    names = Reading(spec.task, Splits()).names
    one: AnySource = spec.sources[0]
    [file] = one.files()
    inspected = inspect(one, file, names)
    if inspected.problem or inspected.lacking:
        return inspected.problem or inspected.lacking
    [raw] = read(Part(one, inspected, range(len(inspected.groups)) if inspected.groups else None), names)
    assert not raw.error
    parsed = spec.task.parse_row(raw.row or {})
    assert parsed is not None
    return chat_of(parsed)[0]


@pytest.mark.parametrize("write", FORMATS)
def test_an_optional_column_is_read_if_it_exists(write: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "3"}
    without = first_row(write, tmp_path / "without", ROW)
    assert without == [{"content": "Add.", "role": "user"}, answer]
    with_it = first_row(write, tmp_path / "with", ROW | {"input": "1 and 2"})
    assert with_it == [{"content": "Add.\n1 and 2", "role": "user"}, answer]
    named = first_row(write, tmp_path / "named", ROW | {"context": "1 and 2"}, columns={"input": "context"})
    assert named == with_it


@pytest.mark.parametrize("write", FORMATS)
def test_an_optional_column_that_is_named_must_exist(write: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert "context" in first_row(write, tmp_path / "file", ROW, columns={"input": "context"})
