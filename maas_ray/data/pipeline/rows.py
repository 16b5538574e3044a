"""Rows on their way through the cluster: what decides about them in columns, and the raw row packed small.

What many rows of a block share stands there once: the names of their columns (`shape`), and the file they come from
(`file`), as dictionaries of Arrow. A dictionary goes along with every piece that a sort cuts a block into, so it holds
few entries; a row beyond them carries its own names, and its own path.
"""

import json
import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.tasks import Row

_SHARED = pa.dictionary(pa.int32(), pa.string())
_MOST_SHARED = 16
"""Entries of a block's dictionary. Those of other blocks come to them in a sort."""

ROWS = pa.schema(
    {
        "row": pa.int64(),  # its own number: of its part, and of its place there
        "key": pa.int64(),  # split and content, see `order.sort_key`
        "digest": pa.binary(32),  # of the content by which rows are duplicates
        "exact": pa.int64(),  # of the content itself: says which of several duplicates is kept
        "inputs": pa.int64(),  # of the content that is not the answer
        "stratum": pa.string(),
        "bands": pa.binary(),  # keys that near-duplicates share, uint64 each
        "file": _SHARED,  # what it was read from, see `paths_of`
        "path": pa.string(),  # null: that of `file`
        "position": pa.int64(),
        "rows": pa.int32(),
        "weight": pa.float64(),
        "fate": pa.string(),
        "like": pa.int64(),  # of a duplicate: the row that is kept; of that row: itself
        "error": pa.string(),
        "notes": pa.string(),  # JSON: what cleaning changed
        "shape": _SHARED,  # the names of the raw row's columns, see `raw_of`
        "payload": pa.large_binary(),  # the raw row as cleaned, pickled; an excerpt, where it is not kept
    }
)


def paths_of(rows: pa.Table) -> pa.ChunkedArray:
    """The path of each row."""
    return pc.coalesce(rows["path"], rows["file"].cast(pa.string()))


class Packer:
    """Packs the rows of a block, and knows what they share."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[Any, ...], str | None] = {}
        self._files: set[str] = set()

    def row(self, row: Row) -> tuple[str | None, bytes]:
        """A raw row as `raw_of` takes it: its shape, and its values pickled, or itself where its shape is its own."""
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
        if key not in self._shapes and len(self._shapes) < _MOST_SHARED:
            self._shapes[key] = _shape(key)
        shape = self._shapes.get(key)
        return (None, pickle.dumps(row)) if shape is None else (shape, pickle.dumps(tuple(values)))

    def path(self, file: str, path: str) -> tuple[str | None, str | None]:
        """What a row has as its `file` and its `path`."""
        if file == path and (file in self._files or len(self._files) < _MOST_SHARED):
            self._files.add(file)
            return file, None
        return None, path


def _shape(names: tuple[Any, ...]) -> str | None:
    """JSON of names; None: they are no texts, which JSON would make of them."""
    flat = [name for one in names for name in (one if isinstance(one, tuple) else (one,))]
    return json.dumps(names) if all(type(name) is str for name in flat) else None


def raw_of(shape: str | None, payload: bytes, load: Callable[[bytes], Any] = pickle.loads) -> Row:
    """The raw row that was packed; `load` unpickles."""
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
    """Names as `_shape` took them, and whether none of them is of columns within a column."""
    names = json.loads(shape)
    return names, all(isinstance(name, str) for name in names)
