"""The schema of rows in the cluster: columns that decide what happens to a row, and the raw row packed small.

Between two steps, rows are `sealed`: a block holds a compressed table in each of its cells. They stay in the order in
which they were read, and are never sorted; only keys are, see `ordering`.

Values that many rows of a block share are stored once, as Arrow dictionaries: the names of their columns (`shape`) and
the file they were read from (`file`). A sort sends a copy of the dictionary along with every piece that it cuts a block
into, so a dictionary holds few entries. A row beyond them carries its own names and its own path.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.names import SPLITS
from maas_ray.redact import hide_secrets
from maas_ray.tasks import Row

KEPT, EMPTY, QUARANTINED = "", "empty", "quarantined"
DUPLICATE, NEAR_DUPLICATE, CONTAMINATED = "duplicate", "near-duplicate", "contaminated"
SAMPLED_OUT = "weight"
"""Outcomes of a row, its `fate`. Any other outcome is a cleaning step's reason, which begins with the step's name."""

NO_SPLIT = len(SPLITS)
"""The split number of rows without content: dropped before they were parsed, or unreadable."""
PART_BITS = 32
"""A row's number is its part's number above this many bits of its index in the part."""
EXCERPT_BYTES = 200
_SHARED = pa.dictionary(pa.int32(), pa.string())
_MAX_SHARED = 16
"""Entries of one block's dictionary. A sort merges the dictionaries of several blocks."""

ROWS = pa.schema(
    {
        "row": pa.int64(),  # number of the row: its part and its index there, see `PART_BITS`
        "key": pa.int64(),  # split and content, see `hashing.sort_key`
        "digest": pa.binary(32),  # content by which rows are exact duplicates
        "exact": pa.int64(),  # hash of the content as written: decides which of several duplicates is kept
        "inputs": pa.int64(),  # hash of the content without the answer
        "stratum": pa.int64(),  # hash of the label, if its share is held out
        "bands": pa.binary(),  # keys that near-duplicates share, uint64 each
        "file": _SHARED,  # file that the row was read from, see `paths_of`
        "path": pa.string(),  # null: the same as `file`
        "position": pa.int64(),
        "rows": pa.int32(),
        "weight": pa.float64(),
        "fate": pa.string(),  # outcome
        "like": pa.int64(),  # for a duplicate, the row that is kept; for that row, itself
        "error": pa.string(),
        "notes": pa.string(),  # JSON: changes that cleaning made
        "shape": _SHARED,  # names of the raw row's columns, see `raw_of`
        "payload": pa.large_binary(),  # the cleaned raw row, pickled; an excerpt, if the row is not kept
    }
)


_SEALED = pa.schema({"rows": pa.large_binary()})
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def sealed(rows: pa.Table) -> pa.Table:
    """Rows as one cell of a block, compressed. Rows of a table take a third of the memory, or less."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, rows.schema, options=_OPTIONS) as writer:
        writer.write_table(rows.combine_chunks())
    content = buffer.getvalue()
    ends = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.table([pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, content])], schema=_SEALED)


def unsealed(block: pa.Table, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables in the cells of a block, one at a time; `columns` as in the schema. None: all."""
    for cell in block["rows"]:
        with pa.ipc.open_stream(cell.as_buffer()) as reader:
            schema = reader.schema
            if columns is None:
                yield reader.read_all()
                continue
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
        with pa.ipc.open_stream(cell.as_buffer(), options=options) as reader:
            yield reader.read_all()


def each(block: pa.Table, step: Callable[[pa.Table], Any], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The results of a step for each table of a block of sealed rows; a step gives a table or yields several."""
    for rows in unsealed(block, columns):
        result = step(rows)
        if isinstance(result, pa.Table):
            yield result
        else:
            yield from result


def resealed(block: pa.Table, step: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
    """A block of sealed rows after a step that gives a table for each of its tables."""
    for rows in unsealed(block):
        yield sealed(step(rows))


def paths_of(rows: pa.Table) -> pa.ChunkedArray:
    """The path of each row."""
    return pc.coalesce(rows["path"], rows["file"].cast(pa.string()))


def with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    """Rows with other values in one column of the schema."""
    field = ROWS.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


def name_of(block: pa.Table) -> str:
    """The name of a block of sealed rows: the number of its first row."""
    numbers = (rows["row"][0].as_py() for rows in unsealed(block, ["row"]) if len(rows))
    return f"{next(numbers, 0):016x}"


def span_of(block: pa.Table) -> str:
    """The name of a block of sealed rows as a whole: its first row, its last row and their number."""
    numbers = np.concatenate([rows["row"].to_numpy() for rows in unsealed(block, ["row"])])
    return f"{numbers[0]:016x}-{numbers[-1]:016x}-{len(numbers)}" if len(numbers) else "none"


def excerpt_of(row: Row) -> bytes:
    """The beginning of a raw row, for a person."""
    (alone,) = row.values() if len(row) == 1 else (None,)
    if isinstance(alone, bytes):
        return alone[:EXCERPT_BYTES]
    text = alone if isinstance(alone, str) else repr(row)
    return text[:EXCERPT_BYTES].encode(errors="backslashreplace")[:EXCERPT_BYTES]


@lru_cache(1 << 10)
@lru_cache(1 << 10)
def printable(text: str) -> str:
    """The text as it is stored: without secrets of URLs, and with escapes for characters that UTF-8 cannot encode.

    A file name on Linux may contain such bytes.
    """
    return hide_secrets(text).encode(errors="backslashreplace").decode()


class Packer:
    """Packs the rows of one block, and remembers the values that they share."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[Any, ...], str | None] = {}
        self._files: set[str] = set()

    def row(self, row: Row) -> tuple[str | None, bytes]:
        """The shape and the payload of a raw row, for `raw_of`. The shape is None if the payload contains the names."""
        names: list[Any] = []
        values: list[Any] = []
        for name, value in row.items():
            if type(value) is dict:
                names.append((name, *value))
                values += value.values()
            else:
                names.append(name)
                values.append(value)
        key = tuple(names)
        if key not in self._shapes and len(self._shapes) < _MAX_SHARED:
            self._shapes[key] = _shape(key)
        shape = self._shapes.get(key)
        return (None, pickle.dumps(row)) if shape is None else (shape, pickle.dumps(tuple(values)))

    def path(self, file: str, path: str) -> tuple[str | None, str | None]:
        """The `file` and the `path` of a row."""
        if file == path and (file in self._files or len(self._files) < _MAX_SHARED):
            self._files.add(file)
            return file, None
        return None, path


def _shape(names: tuple[Any, ...]) -> str | None:
    """JSON of the names. None if a name is not a string, because JSON would turn it into one."""
    flat = [name for one in names for name in (one if isinstance(one, tuple) else (one,))]
    return json.dumps(names) if all(type(name) is str for name in flat) else None


def raw_of(shape: str | None, payload: bytes, load: Callable[[bytes], Any] = pickle.loads) -> Row:
    """The raw row that was packed; `load` unpickles the payload."""
    values = load(payload)
    if shape is None:
        row: Row = values
        return row
    names, flat = _names(shape)
    if flat:
        return dict(zip(names, values, strict=True))
    row, at = {}, 0
    for name in names:
        if isinstance(name, str):
            row[name], at = values[at], at + 1
        else:
            row[name[0]] = dict(zip(name[1:], values[at : at + len(name) - 1], strict=True))
            at += len(name) - 1
    return row


@lru_cache(1 << 10)
def _names(shape: str) -> tuple[list[Any], bool]:
    """The names in a shape, and whether no column contains further columns."""
    names = json.loads(shape)
    return names, all(isinstance(name, str) for name in names)
