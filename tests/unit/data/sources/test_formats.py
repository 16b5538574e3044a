"""Every format gives the same rows; what is broken in one is a row with its error."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maas_ray.data.reading import Inspected, Part, Raw, inspect, read
from maas_ray.data.sources import FORMATS, AnySource, list_files
from tests.support.sources import problem_of, source

ROWS = [{"text": f'row {n} of ünicode\nand lines, "quoted"', "label": f"kind {n % 3}"} for n in range(50)]
COLUMNS = ("text", "label")


def packed(content: bytes, suffix: str) -> bytes:
    ways: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    }
    return ways[suffix](content)


def tar_of(members: list[tuple[str, bytes]], **options: Any) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def jsonl() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def csv_of() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def tar() -> bytes:
    return tar_of(
        [
            member
            for n, row in enumerate(ROWS)
            for member in ((f"a/{n:03}.txt", row["text"].encode()), (f"a/{n:03}.json", json.dumps(row).encode()))
        ]
    )


def ipc(path: Path, *, stream: bool, rows: int = 7) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def saved_to_disk(directory: Path) -> None:
    """As `datasets.Dataset.save_to_disk` lays it out, with a cache beside it."""
    directory.mkdir(parents=True)
    names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
    table = pa.Table.from_pylist(ROWS)
    for name, part in zip(names, (table.slice(0, 30), table.slice(30)), strict=True):
        with pa.ipc.new_stream(str(directory / name), part.schema) as writer:
            writer.write_table(part, max_chunksize=10)
    ipc(directory / "cache-0123456789abcdef.arrow", stream=True)
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (directory / "dataset_info.json").write_text("{}")


def database(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, label TEXT)")
        connection.executemany("INSERT INTO notes (text, label) VALUES (:text, :label)", ROWS)
    connection.close()
    return f"sqlite:///{path}"


def written(directory: Path) -> dict[str, AnySource]:
    """The same rows in every way."""
    found: dict[str, AnySource] = {}
    for suffix in ("", ".gz", ".bz2", ".xz", ".zst"):
        for name, kind, content in (
            ("a.jsonl", "jsonl", jsonl()),
            ("a.csv", "csv", csv_of()),
            ("a.tar", "webdataset", tar()),
        ):
            path = directory / f"{kind}{suffix}" / f"{name}{suffix}"
            path.parent.mkdir()
            path.write_bytes(packed(content, suffix))
            found[f"{kind}{suffix}"] = source(
                format=kind, path=str(path.parent), **({"label": "label"} if kind == "webdataset" else {})
            )
    pq.write_table(pa.Table.from_pylist(ROWS), directory / "a.parquet", row_group_size=9)
    found["parquet"] = source(format="parquet", path=f"{directory}/*.parquet")
    ipc(directory / "a.arrow", stream=True)
    found["stream"] = source(format="arrow", path=f"{directory}/a.arrow")
    ipc(directory / "a.feather", stream=False)
    found["file"] = source(format="arrow", path=f"{directory}/a.feather")
    saved_to_disk(directory / "saved")
    found["save_to_disk"] = source(format="arrow", path=f"{directory}/saved")
    table = pa.table({name: pa.array([row[name] for row in ROWS]).dictionary_encode() for name in COLUMNS})
    with pa.ipc.new_stream(f"{directory}/dictionary.arrows", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    found["dictionary"] = source(format="arrow", path=f"{directory}/dictionary.arrows")
    uri = database(directory / "a.db")
    found["sql"] = source(format="sql", uri=uri, table="notes")
    found["sql query"] = source(format="sql", uri=uri, query="select text, label, id from notes -- all\n")
    found["sql cut"] = source(format="sql", uri=uri, query="select * from notes;", partition_column="id")
    return found


def looks(of: AnySource, columns: tuple[str, ...] = COLUMNS) -> list[Inspected]:
    return [inspect(of, file, columns) for file in list_files(of)]


def everything(of: AnySource, columns: tuple[str, ...] = COLUMNS) -> list[Raw]:
    """All rows, group by group where there are groups; as many as the look found."""
    rows: list[Raw] = []
    for found in looks(of, columns):
        assert not found.problem
        parts = [Part(of, found, range(n, n + 1)) for n in range(len(found.groups))] or [Part(of, found)]
        got = [raw for part in parts for raw in read(part, columns)]
        assert sum(raw.rows for raw in got) == found.rows
        whole = list(read(Part(of, found, range(len(found.groups)) if found.groups else None), columns))
        assert whole == got
        assert looks(of, columns) == looks(of, columns)
        rows += got
    return rows


def test_every_format_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("csv.source", "jsonl", "webdataset", "sql"):
        monkeypatch.setattr(f"maas_ray.data.sources.{module}._GROUP_BYTES", 300)
    sources = written(tmp_path)
    assert {of.format for of in sources.values()} == {kind.name_of() for kind in FORMATS if kind.gives is None}
    for name, of in sources.items():
        rows = everything(of)
        assert [raw.row for raw in rows] == ROWS, name
        assert len({(raw.path, raw.position) for raw in rows}) == len(ROWS), name
        uncut = "." in name or name in ("dictionary", "sql", "sql query")
        assert all(bool(found.groups) is not uncut and len(found.groups) != 1 for found in looks(of)), name


def test_every_format_lists_its_columns_if_one_is_missing(tmp_path: Path) -> None:
    for name, of in written(tmp_path).items():
        problem = problem_of(of, ("text", "stars")).partition(" has no column ")[2]
        assert problem.startswith("'stars' (set `columns.stars`); it has: "), name
        assert "text" in problem, name
        assert "label" in problem, name


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "webdataset", "text"])
def test_rows_before_the_cut_of_a_compressed_file_are_kept(tmp_path: Path, suffix: str, kind: str) -> None:
    many = 40_000 if suffix in (".bz2", ".zst") else 12_000  # these have blocks of 900 kB and of 128 kB
    rows = [{"text": f"{n} {n * 7919 % 104729}", "label": "x"} for n in range(many)]
    if kind == "csv":
        content = b"text,label\n" + b"".join(f"{row['text']},x\n".encode() for row in rows)
    elif kind == "webdataset":
        content = tar_of([(f"{n}.json", json.dumps(row).encode()) for n, row in enumerate(rows[:4000])])
    else:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    data = packed(content, suffix)
    (tmp_path / f"a.{kind}{suffix}").write_bytes(data[: len(data) * 2 // 3])
    columns = COLUMNS if kind != "text" else ("text",)
    extra = {"text": "text", "label": "label"} if kind == "webdataset" else {}
    of = source(format=kind, path=f"{tmp_path}/a.{kind}{suffix}", **extra)
    *good, last = everything(of, columns)
    assert last.row is None
    assert "no whole " in last.error
    assert [raw.row for raw in good] == rows[: len(good)]
    assert len(good) > 100 or kind == "text" or suffix == ".bz2"
