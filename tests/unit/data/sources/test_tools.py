"""Files as tools write them: one small file for each tool and option, written by the tool itself."""

import csv
import io
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import webdataset
from backports import zstd

from maas_ray.data.sources import AnySource
from maas_ray.tasks.cells import label
from maas_ray.tasks.rows import REST
from tests.support.sources import rows_of, source

ROWS: list[dict[str, Any]] = [
    {"text": 'say "no", café', "label": "a", "n": 1},
    {"text": "two\nlines", "label": "b", "n": None},
    {"text": "back\\slash; semicolon", "label": "a", "n": 3},
    {"text": "東京\ttab", "label": "NA", "n": 4},
]
Writer = Callable[[Path], AnySource]


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS)


def shuffled() -> pd.DataFrame:
    """A frame as after `sample`, a filter or `train_test_split`: its index is no range, so pandas stores it."""
    return frame().set_axis([7, 3, 5, 1], axis=0)


def wide() -> pd.DataFrame:
    return shuffled().set_index(pd.MultiIndex.from_arrays([[1, 1, 2, 2], list("wxyz")]))


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def of(kind: str, written: Callable[[Path], Any], name: str, **fields: Any) -> Writer:
    """A writer of one file, and the source that reads it."""

    def write(directory: Path) -> AnySource:
        written(directory / name)
        return source(format=kind, path=str(directory / name), **fields)

    return write


def folder(kind: str, written: Callable[[Path], Any], **fields: Any) -> Writer:
    return of(kind, written, "rows", **fields)


def delimited(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
            writer = csv.DictWriter(file, list(ROWS[0]), **options)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def sunk(path: Path) -> None:
    pl.LazyFrame(ROWS).sink_ipc(path)


def partitioned(path: Path) -> None:
    frame().to_parquet(path, partition_cols=["label"])


def sqlite(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        frame().to_sql("notes", connection, index=False)
    connection.close()


def tarred(path: Path) -> None:
    with webdataset.TarWriter(str(path)) as writer:
        for index, row in enumerate(ROWS):
            writer.write({"__key__": f"{index:03}", "json": row})


def shards(path: Path) -> None:
    path.mkdir()
    with webdataset.ShardWriter(f"{path}/%03d.tar.gz", maxcount=2, compress=True, verbose=0) as writer:
        for index, row in enumerate(ROWS):
            writer.write({"__key__": f"{index:03}", "json": row})


def long_window(path: Path) -> None:
    """As `zstd --long=28` writes it."""
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.enable_long_distance_matching: 1}
    with zstd.ZstdFile(path, "w", options=options) as file:
        file.write(frame().to_json(orient="records", lines=True).encode())


PLAIN = {"include": ["*.parquet"]}
WRITERS: dict[str, Writer] = {
    "pandas to_parquet": of("parquet", lambda path: frame().to_parquet(path), "a.parquet"),
    "pandas to_parquet, index of rows": of("parquet", lambda path: shuffled().to_parquet(path), "a.parquet"),
    "pandas to_parquet, two indices": of("parquet", lambda path: wide().to_parquet(path), "a.parquet"),
    "pandas to_parquet, named index": of(
        "parquet", lambda path: shuffled().rename_axis("row").to_parquet(path), "a.parquet"
    ),
    "pandas to_parquet, brotli": of(
        "parquet", lambda path: frame().to_parquet(path, compression="brotli"), "a.parquet"
    ),
    "pandas to_parquet, categories": of(
        "parquet", lambda path: frame().astype({"label": "category"}).to_parquet(path), "a.parquet"
    ),
    "pandas to_parquet, partitions": folder("parquet", partitioned),
    "pandas to_feather": of("arrow", lambda path: frame().to_feather(path), "a.feather"),
    "pandas to_feather, index of rows": of(
        "arrow", lambda path: pa.feather.write_feather(shuffled(), str(path)), "a.feather"
    ),
    "pandas to_json": of("jsonl", lambda path: frame().to_json(path, orient="records", lines=True), "a.jsonl"),
    "pandas to_json, zstd": of(
        "jsonl", lambda path: frame().to_json(path, orient="records", lines=True, compression="gzip"), "a.jsonl.gz"
    ),
    "pandas to_json, array": of("jsonl", lambda path: frame().to_json(path, orient="records", indent=2), "a.json"),
    "pandas to_csv": of("csv", lambda path: frame().to_csv(path, index=False), "a.csv", missing=[""]),
    "pandas to_csv, index of rows": of("csv", lambda path: frame().to_csv(path), "a.csv", missing=[""]),
    "pandas to_csv, twice": of(
        "csv",
        lambda path: pd.read_csv(io.StringIO(frame().to_csv()), keep_default_na=False, na_values={"n": ""}).to_csv(
            path
        ),
        "a.csv",
        missing=[""],
    ),
    "pandas to_csv, semicolons": of(
        "csv", lambda path: frame().to_csv(path, sep=";", index=False), "a.csv", delimiter=";", missing=[""]
    ),
    "pandas to_csv, latin": of(
        "csv",
        lambda path: frame().head(3).to_csv(path, index=False, encoding="cp1252"),
        "a.csv",
        charset="cp1252",
        missing=[""],
    ),
    "pandas to_sql": lambda directory: (
        sqlite(directory / "a.db"),
        source(format="sql", uri=f"sqlite:///{directory}/a.db", table="notes"),
    )[1],
    "polars write_ipc": of("arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path), "a.arrow"),
    "polars write_ipc, zstd": of(
        "arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path, compression="zstd"), "a.arrow"
    ),
    "polars write_ipc, lz4": of("arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path, compression="lz4"), "a.arrow"),
    "polars write_ipc, categories": of(
        "arrow",
        lambda path: pl.DataFrame(ROWS).with_columns(pl.col("label").cast(pl.Categorical)).write_ipc(path),
        "a.ipc",
    ),
    "polars write_ipc, oldest": of(
        "arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path, compat_level=pl.CompatLevel.oldest()), "a.arrow"
    ),
    "polars sink_ipc": of("arrow", sunk, "a.arrow"),
    "polars write_ipc_stream": of("arrow", lambda path: pl.DataFrame(ROWS).write_ipc_stream(path), "a.arrows"),
    "polars write_parquet": of("parquet", lambda path: pl.DataFrame(ROWS).write_parquet(path), "a.parquet"),
    "polars write_ndjson": of("jsonl", lambda path: pl.DataFrame(ROWS).write_ndjson(path), "a.ndjson"),
    "polars write_json": of("jsonl", lambda path: pl.DataFrame(ROWS).write_json(path), "a.json"),
    "polars write_csv": of("csv", lambda path: pl.DataFrame(ROWS).write_csv(path), "a.csv", missing=[""]),
    "pyarrow write_table": of("parquet", lambda path: pq.write_table(table(), path), "a.parquet"),
    "pyarrow write_table, version 1": of(
        "parquet", lambda path: pq.write_table(table(), path, version="1.0", data_page_version="1.0"), "a.parquet"
    ),
    "pyarrow write_table, version 2": of(
        "parquet", lambda path: pq.write_table(table(), path, data_page_version="2.0", row_group_size=1), "a.parquet"
    ),
    "pyarrow write_table, binary": of(
        "parquet",
        lambda path: pq.write_table(
            table().cast(pa.schema({"text": pa.binary(), "label": pa.binary(), "n": pa.int64()})),
            path,
            store_schema=False,
        ),
        "a.parquet",
    ),
    "pyarrow write_feather, zstd": of(
        "arrow", lambda path: pa.feather.write_feather(table(), str(path), compression="zstd"), "a.feather"
    ),
    "pyarrow write_csv": of("csv", lambda path: pa.csv.write_csv(table(), path), "a.csv", missing=[""]),
    "pyarrow write_dataset, partitions": folder(
        "parquet",
        lambda path: pa.dataset.write_dataset(
            table(), path, format="parquet", partitioning=["label"], partitioning_flavor="hive"
        ),
    ),
    "webdataset TarWriter": of("webdataset", tarred, "a.tar", label="label"),
    "webdataset ShardWriter, gzip": folder("webdataset", shards, label="label"),
    "csv excel": of("csv", delimited(), "a.csv", missing=[""]),
    "csv excel-tab": of("csv", delimited(dialect="excel-tab"), "a.tsv", missing=[""]),
    "csv unix": of("csv", delimited(dialect="unix"), "a.csv", missing=[""]),
    "csv escapes, as Spark": of(
        "csv", delimited(escapechar="\\", doublequote=False), "a.csv", escape="\\", missing=[""]
    ),
    "csv escapes without quotes, as MySQL": of(
        "csv",
        delimited(dialect="excel-tab", escapechar="\\", quoting=csv.QUOTE_NONE, lineterminator="\n", quotechar=None),
        "a.tsv",
        escape="\\",
        quote="",
        missing=[""],
    ),
    "zstd --long=28": of("jsonl", long_window, "a.jsonl.zst"),
}


def told(rows: list[Any]) -> list[dict[str, str]]:
    """Rows by column as a task on tables reads them, sorted, because partitions reorder them."""
    assert all(isinstance(row, dict) for row in rows), rows
    cells = [{"label": label(row["label"])} | {name: label(cell) for name, cell in row[REST].items()} for row in rows]
    return sorted(({name: cells for name, cells in row.items() if cells} for row in cells), key=lambda row: row["text"])


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_a_tool_has_the_rows_that_were_written(tmp_path: Path, name: str) -> None:
    rows = rows_of(WRITERS[name](tmp_path), ("label", REST))
    expected = ROWS[:3] if "latin" in name else ROWS
    if "webdataset" in name:  # the whole object is a column too
        rows = [row | {REST: {name: value for name, value in row[REST].items() if name in ROWS[0]}} for row in rows]
    assert told(rows) == told([{"label": row["label"], REST: {k: row[k] for k in ("text", "n")}} for row in expected])
