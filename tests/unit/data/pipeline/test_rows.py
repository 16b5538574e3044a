"""Rows packed small come back as they were, through all that a sort does to a block."""

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from maas_ray.data.pipeline.rows import ROWS, Packer, paths_of, raw_of

RAW: list[dict[str, Any]] = [
    {"*": {"age": "7", "city": None, "": "x"}, "price": "1"},
    {"*": {"age": "7", "city": None}, "price": "1"},
    {"*": {}, "price": "1"},
    {"text": "long " * 100},
    {},
    {"text": {"a": {"b": [1]}}, "other": {1: "no text", "1": "text"}},
    {"text": ("a tuple", b"bytes", 1.5), "half \ud800": "\ud800"},
]


def block(raw: list[dict[str, Any]], file: str, paths: list[str]) -> pa.Table:
    packer = Packer()
    columns: dict[str, list[Any]] = {name: [None] * len(raw) for name in ROWS.names}
    columns["shape"], columns["payload"] = map(list, zip(*map(packer.row, raw), strict=True))
    columns["file"], columns["path"] = map(list, zip(*(packer.path(file, path) for path in paths), strict=True))
    return pa.table([pa.array(columns[field.name], field.type) for field in ROWS], schema=ROWS)


def unpacked(rows: pa.Table) -> list[dict[str, Any]]:
    return list(map(raw_of, rows["shape"].to_pylist(), rows["payload"].to_pylist()))


def test_a_row_comes_back_with_its_columns_in_order() -> None:
    packer = Packer()
    for raw in RAW:
        assert repr(raw_of(*packer.row(raw))) == repr(raw)


def test_shared_names_and_files_survive_a_sort_of_different_blocks() -> None:
    blocks = [block(RAW, "a", ["a", "b"] * 3 + ["a"]), block(RAW[::-1], "c", ["c"] * len(RAW))]
    order = np.random.default_rng(0).permutation(2 * len(RAW))
    rows = pa.concat_tables([pa.concat_tables(blocks).take(order).slice(start, 3) for start in range(0, 14, 3)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        for start in range(0, 14, 5):  # each batch with a dictionary of its own
            writer.write_table(rows.slice(start, 5).combine_chunks())
    rows = pa.ipc.open_stream(sink.getvalue()).read_all()
    rows = rows.take(pc.sort_indices(pa.array(order)))
    assert repr(unpacked(rows)) == repr(RAW + RAW[::-1])
    assert paths_of(rows).to_pylist() == ["a", "b"] * 3 + ["a"] + ["c"] * len(RAW)


def test_a_dictionary_holds_few_entries_however_rows_differ() -> None:
    raw = [{f"column {number}": number} for number in range(100)]
    paths = [f"file {number}" for number in range(100)]
    packer = Packer()
    packed = [packer.row(row) for row in raw]
    files = [packer.path(path, path) for path in paths]
    assert [raw_of(*one) for one in packed] == raw
    assert [file or path for file, path in files] == paths
    assert len({shape for shape, _ in packed}) < 20 > len({file for file, _ in files})


def test_column_names_are_not_stored_with_each_row() -> None:
    row = {"*": {f"a column with a long name, number {number}": str(number) for number in range(12)}, "target": "1"}
    _, payload = Packer().row(row)
    assert len(payload) < len(pickle.dumps(row)) / 4


def test_a_payload_that_does_not_fit_its_shape_is_an_error() -> None:
    shape, _ = Packer().row({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="zip"):
        raw_of(shape, pickle.dumps((1,)))
