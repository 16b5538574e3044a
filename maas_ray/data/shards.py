"""Shards on disk: stored columns as arrays, as Arrow tables, and as Parquet files."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.storage import FileEntry
from maas_ray.tasks import Column


def to_numpy(table: Any, columns: dict[str, Column]) -> dict[str, np.ndarray]:
    """An Arrow table of stored columns as arrays [n, *shape] that the caller owns, and `index`."""
    batch = {}
    for name, column in {"index": Column("int64"), **columns}.items():
        values = table.column(name)
        array = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        dtype, size = np.dtype(column.dtype), int(np.prod(column.shape))
        flat = np.frombuffer(array.buffers()[1], dtype, len(array) * size, array.offset * size * dtype.itemsize)
        batch[name] = flat.reshape(len(array), *column.shape).copy()
    return batch


def from_numpy(batch: dict[str, np.ndarray], columns: dict[str, Column]) -> Any:
    """The inverse of `to_numpy`. Entries that are not stored columns, such as `index`, become int64."""
    import pyarrow as pa

    arrays = {}
    for name, values in batch.items():
        kind = arrow_type(columns.get(name, Column("int64")))
        buffer = pa.py_buffer(np.ascontiguousarray(values, columns[name].dtype if name in columns else "int64"))
        arrays[name] = pa.Array.from_buffers(kind, len(values), [None, buffer])
    return pa.table(arrays)


def arrow_type(column: Column) -> Any:
    """The Arrow type of a stored column: a scalar, or fixed-size binary.

    Parquet has no arrays of a fixed shape: a list of numbers costs two levels and four bytes for each pixel
    or token, and is read three to twenty times slower than their bytes.
    """
    import pyarrow as pa

    dtype = np.dtype(column.dtype)
    return pa.binary(int(np.prod(column.shape)) * dtype.itemsize) if column.shape else pa.from_numpy_dtype(dtype)


def write_table(table: Any, uri: str, path: str, group_rows: int) -> FileEntry:
    """Write a Parquet file of a dataset; gives its entry in the manifest."""
    return write_tables([table], uri, path, group_rows)


def write_tables(tables: Iterable[Any], uri: str, path: str, group_rows: int) -> FileEntry:
    """Write a Parquet file of a dataset from its rows in order, of which only one table is in memory at a time.

    Each table but the last holds whole row groups.
    """
    import pyarrow.parquet as pq

    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with tempfile.NamedTemporaryFile(suffix=".parquet") as local:
        writer: Any = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(local.name, table.schema, **options)
                writer.write_table(table, row_group_size=group_rows)
        finally:
            if writer is not None:
                writer.close()
        return FileEntry(path, *storage.upload(Path(local.name), storage.join(uri, path)))
