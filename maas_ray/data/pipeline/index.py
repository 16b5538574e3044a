"""Index of a dataset's rows; new rows are deduplicated against it when the dataset grows.

    ordered rows ──write_index──▶ index/part-….parquet ──keys_of_old_rows──▶ keys, beside those of the new rows
                                                       └─splits_of─────────▶ splits of inputs that occur again

A row is listed by its number, which stays the same as the dataset grows, because parts of later files are numbered
after those of earlier files. A near-duplicate that was dropped is listed with its bands under the number of its
survivor, so that its own duplicates are duplicates of the survivor. The index takes about 30 bytes a row on disk, and 8
more for each band if near-duplicates are searched for; bands do not compress (measured on 100,000 rows in random order:
29.8 bytes, and 161.8 with 16 bands).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maas_ray import storage
from maas_ray.data.dataset import INDEX_DIRECTORY
from maas_ray.data.dedup.survivors import KEYS
from maas_ray.data.pipeline.objects import unpacked, write_entry
from maas_ray.data.pipeline.rows import KEPT, NEAR_DUPLICATE, name_of, unsealed
from maas_ray.data.splits.hashing import SPLIT_BITS, words_of
from maas_ray.errors import CorruptError

INDEX = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.int64(),  # the first 128 bits of the digest by which rows are duplicates; null for a near-duplicate
        "more": pa.int64(),
        "inputs": pa.int64(),
        "split": pa.int8(),
        "position": pa.int64(),
        "bands": pa.binary(),
        "liked": pa.bool_(),  # true if `removed/` already names the row as a survivor
    }
)
OLD = 1 << 62
"""Rank of an old row: its number minus this, which is below the ranks of all new rows. So an old row survives."""


@dataclass(frozen=True)
class RowIndex:
    """The index of a dataset that grows.

    Args:
        uri: the dataset.
        files: paths of the index's files.
        rows: number of rows, approximately.
        first_new: number of the first row that is added to them.
    """

    uri: str
    files: tuple[str, ...]
    rows: int
    first_new: int


def dropped_survivors(rows: pa.Table) -> pa.Table:
    """Rows that survived their duplicates, and were dropped by a later step themselves."""
    survives = pc.equal(rows["like"], rows["row"])
    return rows.filter(pc.and_(survives, pc.not_equal(rows["fate"], KEPT))).select(["row"])


def write_index(block: pa.Table, uri: str, attempt: str, dropped: np.ndarray | None = None) -> pa.Table:
    """Write the index of a block's kept rows; gives the file's entry in the manifest.

    Near-duplicates of `dropped_survivors` are not listed: later rows like them are like no row of the dataset.
    """
    columns = ("fate", "row", "digest", "inputs", "key", "position", "bands", "like")
    index = pa.concat_tables([_index_of(rows, dropped) for rows in unsealed(block, columns)])
    return write_entry(index, f"{INDEX_DIRECTORY}/part-{attempt}-{name_of(block)}.parquet", uri)


def _index_of(rows: pa.Table, dropped: np.ndarray | None) -> pa.Table:
    kept = rows.filter(pc.equal(rows["fate"], KEPT))
    near = rows.filter(pc.equal(rows["fate"], NEAR_DUPLICATE))
    if dropped is not None:
        near = near.filter(pa.array(~np.isin(near["like"].to_numpy(), dropped)))
    digests = words_of(kept["digest"])
    columns = {
        "row": kept["row"],
        "key": digests[:, 0],
        "more": digests[:, 1],
        "inputs": kept["inputs"],
        "split": (kept["key"].to_numpy() >> SPLIT_BITS).astype(np.int8),
        "position": kept["position"],
        "bands": kept["bands"],
        "liked": pc.is_valid(kept["like"]),
    }
    others: dict[str, Any] = {name: pa.nulls(len(near), INDEX.field(name).type) for name in INDEX.names}
    others |= {"row": near["like"], "bands": near["bands"], "liked": pa.array([True] * len(near), pa.bool_())}
    return pa.concat_tables([pa.table(some, schema=INDEX) for some in (columns, others)])


def read_index(paths: pa.Table, uri: str) -> Iterator[pa.Table]:
    """The index in some of its files.

    Raises:
        CorruptError: a file is damaged.
    """
    for path in unpacked(paths):
        try:
            with storage.open_file(storage.join(uri, path)) as handle:
                yield pq.read_table(handle, page_checksum_verification=True).cast(INDEX)
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(
                f"{uri}: {path} is damaged: {error}. Prepare the dataset again with --fresh.", code="index_corrupt"
            ) from error


def keys_of_old_rows(paths: pa.Table, uri: str) -> Iterator[pa.Table]:
    """The keys that old rows share with their duplicates, in the form of `survivors.duplicate_keys`."""
    yield KEYS.empty_table()
    for index in read_index(paths, uri):
        rows = index["row"].to_numpy()
        exact = index.filter(pc.is_valid(index["key"]))
        bands = [np.frombuffer(keys, np.int64) for keys in index["bands"].to_pylist()]
        numbers = np.concatenate([exact["row"].to_numpy(), np.repeat(rows, list(map(len, bands)))])
        columns = {
            "key": np.concatenate([exact["key"].to_numpy(), *bands]),
            "more": np.concatenate([exact["more"].to_numpy(), np.zeros(len(numbers) - len(exact), np.int64)]),
            "row": numbers,
            "rank": numbers - OLD,
            "exact": np.arange(len(numbers)) < len(exact),
        }
        yield pa.table(columns, schema=KEYS)


def splits_of(paths: pa.Table, uri: str, wanted: Any) -> Iterator[pa.Table]:
    """The splits of the inputs in `wanted`, a reference to ascending int64."""
    import ray

    yield INDEX.empty_table().select(["inputs", "split"])
    for every in read_index(paths, uri):
        index = every.filter(pc.is_valid(every["key"])).select(["inputs", "split"])
        yield index.filter(pa.array(_among(index["inputs"].to_numpy(), ray.get(wanted))))


def unnamed_rows(paths: pa.Table, uri: str, wanted: Any) -> Iterator[pa.Table]:
    """The rows in `wanted`, a reference to ascending numbers, that `removed/` does not name yet."""
    import ray

    yield INDEX.empty_table().select(["row", "position"])
    for every in read_index(paths, uri):
        index = every.filter(pc.and_(pc.is_valid(every["key"]), pc.invert(every["liked"])))
        yield index.filter(pa.array(_among(index["row"].to_numpy(), ray.get(wanted)))).select(["row", "position"])


def old_survivors(rows: pa.Table, first_new: int) -> pa.Table:
    """Old rows that survive duplicates in a block: their numbers are below `first_new`."""
    return rows.filter(pc.less(rows["like"], first_new)).select(["like"])


def _among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(wanted):
        return np.zeros(len(values), bool)
    indices = np.searchsorted(wanted, values).clip(max=len(wanted) - 1)
    among: np.ndarray = wanted[indices] == values
    return among
