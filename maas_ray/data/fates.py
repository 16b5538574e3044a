"""From files to rows in the order of their content, each with its fate: kept, empty, duplicate, quarantined.

Every function here takes one Arrow block, and none depends on how rows are cut into blocks. Every row that
is read stays a row to the end, so that what was counted adds up.
"""

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.dataset import QUARANTINE_DIRECTORY, SPLITS, write_table
from maas_ray.data.keeping import KEPT as KEEP
from maas_ray.data.keeping import columns_to_read, kept
from maas_ray.data.order import SPLIT_BITS, content_digest, sort_key, split_number
from maas_ray.data.reading import Raw, inspect, read
from maas_ray.data.series import joined
from maas_ray.data.sources import AnySource
from maas_ray.tasks import Row, TaskSpec

ASIDE = len(SPLITS)
"""Number of the split that empty and unreadable rows are counted in."""
KEPT, EMPTY, DUPLICATE, QUARANTINED = "", "empty", "duplicate", "quarantined"

_BATCH_ROWS, _BATCH_BYTES = 1 << 14, 8 << 20

ROWS = pa.schema(
    {
        "key": pa.int64(),  # split and content, see `order.sort_key`
        "digest": pa.binary(32),
        "path": pa.string(),
        "position": pa.int64(),
        "rows": pa.int64(),
        "fate": pa.string(),
        "error": pa.string(),
        "payload": pa.large_binary(),  # the raw row, pickled; an excerpt, where it is quarantined
    }
)
QUARANTINE = ("path", "position", "rows", "error", "excerpt")


def packed(items: Iterable[Any]) -> pa.Table:
    """Python objects as a block, one a row."""
    return pa.table({"item": pa.array([pickle.dumps(item) for item in items], pa.large_binary())})


def unpacked(block: pa.Table) -> Iterator[Any]:
    """The objects in a block of `packed`."""
    for item in block["item"].to_pylist():
        yield pickle.loads(item)  # noqa: S301  written by another process of this very job


def inspect_files(items: pa.Table, sources: tuple[AnySource, ...], columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Look at files, each given with its source's number."""
    for number, file in unpacked(items):
        yield packed([(number, inspect(sources[number], file, columns))])


def read_rows(
    parts: pa.Table, task: TaskSpec, shares: tuple[float, ...], keep: tuple[str, ...] = ()
) -> Iterator[pa.Table]:
    """Read and parse; each row gets its digest, its split and its fate. Columns to `keep` decide none of them."""
    batch: list[dict[str, Any]] = []
    size = 0
    for part in unpacked(parts):
        found = read(part, columns_to_read(task.columns, keep))
        for raw in joined(found, task.steps, shares) if task.steps else found:
            batch.append(_row(raw, task, shares, keep))
            size += len(batch[-1]["payload"])
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
                yield pa.Table.from_pylist(batch, ROWS)
                batch, size = [], 0
    yield pa.Table.from_pylist(batch, ROWS)


def _row(raw: Raw, task: TaskSpec, shares: tuple[float, ...], keep: tuple[str, ...]) -> dict[str, Any]:
    error, fate = raw.error, QUARANTINED
    if raw.row is not None:
        try:
            kept(raw.row, keep)
            parsed = task.parse_row(raw.row)
            if parsed is not None:
                digest = content_digest(parsed, sorted(parsed))
                inputs = digest if {*task.inputs} == {*parsed} else content_digest(parsed, task.inputs)
                key = sort_key(split_number(inputs, shares) if raw.split is None else raw.split, digest)
                return _record(raw, key, digest, KEPT, "", pickle.dumps(raw.row))
            fate = EMPTY
        except ValueError as caught:
            error = str(caught)
    digest = sha256(f"{raw.path}\0{raw.position}".encode(errors="replace")).digest()
    excerpt = raw.excerpt if fate == QUARANTINED else b""
    return _record(raw, sort_key(ASIDE, digest), digest, fate, error, excerpt)


def _record(raw: Raw, key: int, digest: bytes, fate: str, error: str, payload: bytes) -> dict[str, Any]:
    place = {"key": key, "digest": digest, "path": _printable(raw.path), "position": raw.position, "rows": raw.rows}
    return place | {"fate": fate, "error": _printable(error), "payload": payload}


def _printable(text: str) -> str:
    """The text without what UTF-8 has no bytes for: a file's name on Linux may hold anything."""
    return text.encode(errors="backslashreplace").decode()


def key_ranges(shares: tuple[float, ...], blocks: int) -> list[int]:
    """Boundaries that cut the sort keys into about so many ranges of equal size, none of which spans splits."""
    boundaries = []
    for split, share in enumerate((1 - sum(shares), *shares, 0.0)):
        ranges = max(1, round(share * blocks))
        boundaries += [(split << SPLIT_BITS) + (number << SPLIT_BITS) // ranges for number in range(ranges)]
    return boundaries[1:]


def settle(rows: pa.Table) -> pa.Table:
    """Order a range of keys wholly, and mark each row whose like stands before it as a duplicate."""
    order = ("key", "digest", "path", "position")
    rows = rows.sort_by([(name, "ascending") for name in order])
    digests, fates, payloads = (rows[name].to_pylist() for name in ("digest", "fate", "payload"))
    for place in range(1, len(digests)):
        if fates[place] == KEPT and digests[place] == digests[place - 1]:
            fates[place], payloads[place] = DUPLICATE, b""
    for name, values in (("fate", fates), ("payload", payloads)):
        rows = rows.set_column(ROWS.get_field_index(name), ROWS.field(name), pa.array(values, ROWS.field(name).type))
    return rows


def tally(rows: pa.Table) -> pa.Table:
    """How many rows met which fate; errors that differ in numbers alone are counted as one."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    columns = (rows[name].to_pylist() for name in ("fate", "error", "rows", "path", "position"))
    for fate, error, count, path, position in zip(*columns, strict=True):
        kind = fate, re.sub(r"0x[0-9a-f]+|\d+", "#", error)
        counts[kind] += count
        found = f"{error} ({path}" + (f":{position})" if position else ")")
        example[kind] = min(example.get(kind, found), found)
    records = [
        {"fate": kind[0], "kind": kind[1], "example": example[kind], "rows": count} for kind, count in counts.items()
    ]
    fields = {"fate": pa.string(), "kind": pa.string(), "example": pa.string(), "rows": pa.int64()}
    return pa.Table.from_pylist(records, pa.schema(fields))


class Kept(NamedTuple):
    """A row that is kept: its split's number, its digest, its parsed content, and how many rows it stands for."""

    split: int
    digest: bytes
    row: Row
    rows: int


def kept_rows(rows: pa.Table, task: TaskSpec, keep: tuple[str, ...] = ()) -> Iterator[Kept]:
    """The rows that are kept; with columns to `keep`, these too."""
    columns = (rows[name].to_pylist() for name in ("key", "digest", "fate", "payload", "rows"))
    for key, digest, fate, payload, count in zip(*columns, strict=True):
        if fate == KEPT:
            raw = pickle.loads(payload)  # noqa: S301  written by `_row`
            row = task.parse_row(raw)
            if row is None:
                raise ValueError("a row that was not empty is empty now; the task's parse_row() is not a function")
            if keep:
                row = {**row, KEEP: kept(raw, keep)}
            yield Kept(key >> SPLIT_BITS, digest, row, count)


def write_quarantine(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    """Write a block's quarantined rows, if it has any; gives the file's entry in the manifest."""
    rows = rows.filter(pc.equal(rows["fate"], QUARANTINED))
    if not len(rows):
        return packed([])
    name = f"{QUARANTINE_DIRECTORY}/part-{attempt}-{rows['digest'][0].as_py().hex()[:16]}.parquet"
    columns = [rows[column if column != "excerpt" else "payload"] for column in QUARANTINE]
    return packed([write_table(pa.table(columns, names=QUARANTINE), uri, name, 1 << 16)])
