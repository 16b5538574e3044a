"""Files about rows that are not in the dataset: `quarantine/` and `removed/`."""

import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.dataset import QUARANTINE_DIRECTORY, REMOVED_DIRECTORY
from maas_ray.data.pipeline.objects import write_entry
from maas_ray.data.pipeline.rows import (
    EXCERPT_BYTES,
    KEPT,
    QUARANTINED,
    excerpt_of,
    name_of,
    paths_of,
    printable,
    raw_of,
    unsealed,
    with_column,
)

QUARANTINE = ("path", "position", "rows", "error", "excerpt")
REMOVED = ("row", "path", "position", "rows", "fate", "like", "excerpt")
"""Columns of the files."""


def write_quarantine(block: pa.Table, uri: str, attempt: str, secret: bool = False) -> pa.Table:
    """Write a block's quarantined rows, if there are any; gives the file's entry in the manifest.

    Args:
        block: sealed rows.
        uri: the dataset.
        attempt: part of the file's name.
        secret: whether to write no excerpts, because a later step would have removed personal data.
    """
    rows = pa.concat_tables([rows.filter(pc.equal(rows["fate"], QUARANTINED)) for rows in unsealed(block)])
    if secret:
        rows = with_column(rows, "payload", [b""] * len(rows))
    return _write(rows, QUARANTINE, f"{QUARANTINE_DIRECTORY}/part-{attempt}-{name_of(block)}.parquet", uri)


def write_removed(block: pa.Table, uri: str, attempt: str, secret: bool = False) -> pa.Table:
    """Write a block's dropped rows with the reasons, and the rows kept for duplicates; see `write_quarantine`."""
    rows = pa.concat_tables([rows.filter(_is_named(rows)) for rows in unsealed(block)])
    columns = (rows[name].to_pylist() for name in ("fate", "shape", "payload"))
    excerpts = [
        excerpt_of(raw_of(shape, payload)) if outcome == KEPT else payload[:EXCERPT_BYTES]
        for outcome, shape, payload in zip(*columns, strict=True)
    ]
    if secret:
        excerpts = [b""] * len(rows)
    rows = with_column(rows, "payload", excerpts)
    return _write(rows, REMOVED, f"{REMOVED_DIRECTORY}/part-{attempt}-{name_of(block)}.parquet", uri)


def _is_named(rows: pa.Table) -> pa.ChunkedArray:
    """True for rows that were dropped, and for rows kept for duplicates."""
    dropped = pc.invert(pc.is_in(rows["fate"], pa.array([KEPT, QUARANTINED])))
    return pc.or_(dropped, pc.and_(pc.equal(rows["fate"], KEPT), pc.is_valid(rows["like"])))


def write_old_survivors(rows: pa.Table, paths: list[str], uri: str, attempt: str) -> pa.Table:
    """Write rows of the parent that survive new duplicates, by numbers and positions; gives the file's entry."""
    columns = {
        "row": rows["row"],
        "path": pa.array([printable(path) for path in paths], pa.string()),
        "position": rows["position"],
        "rows": pa.array([1] * len(rows), pa.int64()),
        "fate": pa.array([KEPT] * len(rows), pa.string()),
        "like": rows["row"],
        "excerpt": pa.array([b""] * len(rows), pa.large_binary()),
    }
    table = pa.table({name: columns[name] for name in REMOVED})
    return write_entry(table, f"{REMOVED_DIRECTORY}/part-{attempt}-before.parquet", uri)


def _write(rows: pa.Table, columns: tuple[str, ...], path: str, uri: str) -> pa.Table:
    derived = {"path": paths_of(rows), "rows": rows["rows"].cast(pa.int64()), "excerpt": rows["payload"]}
    arrays = [derived[column] if column in derived else rows[column] for column in columns]
    return write_entry(pa.table(arrays, names=columns), path, uri)
