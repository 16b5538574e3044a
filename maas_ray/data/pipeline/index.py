"""The rows that a dataset holds, as rows that come later are compared with them.

    ordered rows ──write_index──▶ index/part-….parquet ──keys_of_known──▶ keys, beside those of the new rows
                                                       └─splits_of──────▶ splits of inputs that come again

A row is listed by its number, which stays its own as the dataset grows: parts of later files are numbered after those
of the files before. One that was left out as nearly the same as another is listed by the bands of its signature under
that other one's number: what is like it is like the row that was kept. About 30 bytes a row lie on disk, and with
near-duplicates 8 more for each of its bands, which do not compress (100,000 rows in random order: 29.8 bytes, and 161.8
with 16 bands).
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
from maas_ray.data.dedup.verdicts import KEYS
from maas_ray.data.pipeline import row_steps as fates
from maas_ray.data.splits.hashing import SPLIT_BITS
from maas_ray.errors import CorruptError

INDEX = pa.schema(
    {
        "row": pa.int64(),
        "key": pa.int64(),  # the first 128 bits of the digest by which rows are duplicates; null: of a near-duplicate
        "more": pa.int64(),
        "inputs": pa.int64(),
        "split": pa.int8(),
        "position": pa.int64(),
        "bands": pa.binary(),
        "liked": pa.bool_(),  # whether `removed/` names it already, since others are like it
    }
)
OLD = 1 << 62
"""Below all ranks of new rows lie those of old ones: their numbers less this."""


@dataclass(frozen=True)
class Known:
    """The rows of a dataset that grows.

    Args:
        uri: of the dataset.
        index: paths of its index.
        rows: about how many there are.
        first: number of the first row that comes to them.
    """

    uri: str
    index: tuple[str, ...]
    rows: int
    first: int


def lost(rows: pa.Table) -> pa.Table:
    """Rows that others were left out for, and that were left out themselves after that."""
    stands_for = pc.equal(rows["like"], rows["row"])
    return rows.filter(pc.and_(stands_for, pc.not_equal(rows["fate"], fates.KEPT))).select(["row"])


def write_index(rows: pa.Table, uri: str, attempt: str, lost: np.ndarray | None = None) -> pa.Table:
    """Write what a block's kept rows are known by; gives the file's entry in the manifest.

    What was nearly the same as a row that is `lost`, see there, is not listed: what is like it is like nothing here.
    """
    kept = rows.filter(pc.equal(rows["fate"], fates.KEPT))
    near = rows.filter(pc.equal(rows["fate"], fates.NEAR_DUPLICATE))
    if lost is not None:
        near = near.filter(pa.array(~np.isin(near["like"].to_numpy(), lost)))
    digests = np.frombuffer(b"".join(kept["digest"].to_pylist()), ">i8").reshape(-1, 4).astype(np.int64)
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
    table = pa.concat_tables([pa.table(some, schema=INDEX) for some in (columns, others)])
    return fates.written(table, f"{INDEX_DIRECTORY}/part-{attempt}-{fates.name_of(rows)}.parquet", uri)


def read_index(paths: pa.Table, uri: str) -> Iterator[pa.Table]:
    """The index in some of its files.

    Raises:
        CorruptError: it is damaged.
    """
    for path in fates.unpacked(paths):
        try:
            with storage.open_file(storage.join(uri, path)) as handle:
                yield pq.read_table(handle, page_checksum_verification=True).cast(INDEX)
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(f"{uri}: {path} is damaged: {error}. Prepare the dataset anew, by --fresh.") from error


def keys_of_known(paths: pa.Table, uri: str) -> Iterator[pa.Table]:
    """What old rows share with new ones that they are like, as `verdicts.keys_of` gives it for these."""
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
    """Splits of inputs that stand among those that are `wanted`, a reference to ascending int64."""
    import ray

    yield INDEX.empty_table().select(["inputs", "split"])
    for every in read_index(paths, uri):
        index = every.filter(pc.is_valid(every["key"])).select(["inputs", "split"])
        yield index.filter(pa.array(_among(index["inputs"].to_numpy(), ray.get(wanted))))


def rows_of(paths: pa.Table, uri: str, wanted: Any) -> Iterator[pa.Table]:
    """Those rows that are `wanted`, a reference to ascending numbers, and that `removed/` does not name yet."""
    import ray

    yield INDEX.empty_table().select(["row", "position"])
    for every in read_index(paths, uri):
        index = every.filter(pc.and_(pc.is_valid(every["key"]), pc.invert(every["liked"])))
        yield index.filter(pa.array(_among(index["row"].to_numpy(), ray.get(wanted)))).select(["row", "position"])


def likes_below(rows: pa.Table, first: int) -> pa.Table:
    """Which rows with lower numbers than `first` some of a block were left out for."""
    return rows.filter(pc.less(rows["like"], first)).select(["like"])


def _among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(wanted):
        return np.zeros(len(values), bool)
    places = np.searchsorted(wanted, values).clip(max=len(wanted) - 1)
    found: np.ndarray = wanted[places] == values
    return found
