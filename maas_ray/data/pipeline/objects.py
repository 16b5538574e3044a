"""Python objects as Arrow blocks, so that Ray Data can carry work to its workers and results back."""

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from maas_ray.data.shards import write_table


def packed(items: Iterable[Any]) -> pa.Table:
    """Python objects as a block, one in each row."""
    return pa.table({"item": pa.array([pickle.dumps(item) for item in items], pa.large_binary())})


def unpacked(block: pa.Table) -> Iterator[Any]:
    """The objects in a block of `packed`."""
    for item in block["item"].to_pylist():
        yield pickle.loads(item)  # noqa: S301  written by another process of this very job


def write_entry(table: pa.Table, path: str, uri: str) -> pa.Table:
    """Write a table below a dataset's URI, unless it is empty; gives the file's entry in the manifest."""
    return packed([write_table(table, uri, path, 1 << 16)] if len(table) else [])
