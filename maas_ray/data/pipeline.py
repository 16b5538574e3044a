"""The steps from raw rows to shards, each a function of one Arrow block.

    read ─▶ sort by content ─▶ settle ─▶ encode ─▶ pack ─▶ sort by place ─▶ write
            (duplicates side by side)    (fitted task)      (the global shuffle)

No step depends on how rows are cut into blocks, so the result does not either. `encode` lays rows end to
end in chunks that know how much they hold; prefix sums over the chunks give each its place in the split,
and `pack` cuts it where sequences end. The piece of a sequence that lies in another chunk meets its rest in
the sort. Knows nothing of Ray; `maas_ray.data.prepare` runs the steps on a cluster.
"""

import json
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maas_ray import storage
from maas_ray.data.dataset import QUARANTINE_DIRECTORY, SPLITS, Shard, from_numpy
from maas_ray.data.order import SPLIT_BITS, content_digest, shuffled, sort_key, split_number
from maas_ray.data.reading import Raw, inspect, read
from maas_ray.data.sources import AnySource
from maas_ray.tasks import Column, Row, Task, TaskSpec, load_task

ASIDE = len(SPLITS)
"""Number of the split that empty and unreadable rows are counted in."""
KEPT, EMPTY, DUPLICATE, QUARANTINED = "", "empty", "duplicate", "quarantined"

_BATCH_ROWS, _BATCH_BYTES = 256, 8 << 20
_GROUP_BYTES, _SHARD_BYTES, _SMALL_GROUPS = 2 << 20, 256 << 20, 16

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


# --- read and settle -------------------------------------------------------------------------------


def inspect_files(items: pa.Table, sources: tuple[AnySource, ...], columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Look at files, each given with its source's number."""
    for number, file in unpacked(items):
        yield packed([(number, inspect(sources[number], file, columns))])


def read_rows(parts: pa.Table, task: TaskSpec, shares: tuple[float, ...]) -> Iterator[pa.Table]:
    """Read and parse; each row gets its digest, its split and its fate."""
    batch: list[dict[str, Any]] = []
    size = 0
    for part in unpacked(parts):
        for raw in read(part, task.columns):
            batch.append(_row(raw, task, shares))
            size += len(batch[-1]["payload"])
            if size >= _BATCH_BYTES or len(batch) >= 1 << 14:
                yield pa.Table.from_pylist(batch, ROWS)
                batch, size = [], 0
    yield pa.Table.from_pylist(batch, ROWS)


def _row(raw: Raw, task: TaskSpec, shares: tuple[float, ...]) -> dict[str, Any]:
    error, fate = raw.error, QUARANTINED
    if raw.row is not None:
        try:
            parsed = task.parse_row(raw.row)
            if parsed is not None:
                digest = content_digest(parsed, task.columns)
                inputs = digest if task.inputs == task.columns else content_digest(parsed, task.inputs)
                key = sort_key(split_number(inputs, shares), digest)
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
        example.setdefault(kind, f"{error} ({path}" + (f":{position})" if position else ")"))
    records = [
        {"fate": kind[0], "kind": kind[1], "example": example[kind], "rows": count} for kind, count in counts.items()
    ]
    fields = {"fate": pa.string(), "kind": pa.string(), "example": pa.string(), "rows": pa.int64()}
    return pa.Table.from_pylist(records, pa.schema(fields))


def kept_rows(rows: pa.Table, task: TaskSpec) -> Iterator[tuple[int, bytes, Row]]:
    """Split, digest and parsed content of the rows that are kept."""
    columns = (rows[name].to_pylist() for name in ("key", "digest", "fate", "payload"))
    for key, digest, fate, payload in zip(*columns, strict=True):
        if fate == KEPT:
            row = task.parse_row(pickle.loads(payload))  # noqa: S301  written by `_row`
            if row is None:
                raise ValueError("a row that was not empty is empty now; the task's parse_row() is not a function")
            yield key >> SPLIT_BITS, digest, row


# --- encode and pack -------------------------------------------------------------------------------


def chunk_schema(task: Task) -> pa.Schema:
    """A chunk is one row: encoded rows laid end to end, as bytes, by column."""
    return pa.schema(
        {
            "split": pa.int64(),
            "first": pa.binary(32),  # digest of its first row: orders the chunks of a split
            "rows": pa.int64(),
            "elements": pa.int64(),  # tokens of a packed task, else rows
            "dropped": pa.string(),  # JSON: rows left out, by reason
            **dict.fromkeys(task.stored, pa.large_binary()),
        }
    )


def encode(rows: pa.Table, files: dict[str, bytes], task_spec: TaskSpec) -> Iterator[pa.Table]:
    """Encode kept rows with the task as it was saved, so that nothing but the saved task ever encodes."""
    task = _saved_task(files)
    schema = chunk_schema(task)
    batch: list[tuple[int, bytes, Row]] = []
    size = 0
    for split, digest, row in kept_rows(rows, task_spec):
        if batch and (split != batch[0][0] or len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES):
            yield pa.Table.from_pylist([_chunk(batch, task)], schema)
            batch, size = [], 0
        batch.append((split, digest, row))
        size += sum(getattr(value, "nbytes", len(value)) for value in row.values())
    yield pa.Table.from_pylist([_chunk(batch, task)] if batch else [], schema)


def _saved_task(files: dict[str, bytes]) -> Task:
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            (Path(directory) / name).write_bytes(content)
        return load_task(Path(directory))


def _chunk(batch: list[tuple[int, bytes, Row]], task: Task) -> dict[str, Any]:
    rows = [row for _, _, row in batch]
    dropped: Counter[str] = Counter()
    try:
        encoded = task.encode(rows)
    except ValueError:
        rows, dropped = _encodable(rows, task)
        encoded = task.encode(rows) if rows else {name: [] for name in task.stored}
    elements = len(rows)
    columns = {}
    for name, column in task.stored.items():
        values = encoded[name]
        if task.packing:
            elements = sum(map(len, values))
            columns[name] = b"".join(np.ascontiguousarray(value, column.dtype).data for value in values)
        else:
            columns[name] = np.ascontiguousarray(values, column.dtype).tobytes()
    split, first, _ = batch[0]
    place = {"split": split, "first": first, "rows": len(rows), "elements": elements}
    return place | {"dropped": json.dumps(dropped)} | columns


def _encodable(rows: list[Row], task: Task) -> tuple[list[Row], Counter[str]]:
    """Rows that can be encoded, and why the others cannot: a label that training has not, say."""
    good, dropped = [], Counter[str]()
    for row in rows:
        try:
            task.encode([row])
        except ValueError as error:
            dropped[str(error)] += 1
        else:
            good.append(row)
    return good, dropped


def listing(chunks: pa.Table) -> pa.Table:
    """What chunks hold, without the values."""
    return chunks.select(["split", "first", "rows", "elements", "dropped"])


@dataclass(frozen=True)
class Plan:
    """Where everything goes, by split number.

    Args:
        columns: the stored columns.
        length: elements in a stored row; a row that is not packed is one element.
        packed: whether stored rows are cut from rows laid end to end.
        offsets: elements of the split before each chunk, by (split, first digest).
        rows: stored rows of each split.
        seeds: what each split is shuffled with.
    """

    columns: dict[str, Column]
    length: int
    packed: bool
    offsets: dict[tuple[int, bytes], int]
    rows: tuple[int, ...]
    seeds: tuple[str, ...]

    def width(self, name: str) -> int:
        """Bytes of one element of a column."""
        column = self.columns[name]
        return int(np.prod(() if self.packed else column.shape)) * np.dtype(column.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return sum(self.width(name) for name in self.columns) * self.length

    def base(self, split: int) -> int:
        """Place of the split's first row: all splits lie one after the other."""
        return sum(self.rows[:split])


def pack(chunks: pa.Table, plan: Plan) -> Iterator[pa.Table]:
    """Cut chunks where stored rows end; every piece knows the row it belongs to, and that row's final place."""
    widths = {name: plan.width(name) for name in plan.columns}
    fields = {"place": pa.int64(), "element": pa.int64(), **dict.fromkeys(widths, pa.large_binary())}
    yield pa.schema(fields).empty_table()
    for number in range(len(chunks)):
        split, first, elements = (chunks[name][number].as_py() for name in ("split", "first", "elements"))
        offset = plan.offsets[split, first]
        cuts = np.arange(-offset % plan.length, elements, plan.length)
        cuts = np.unique(np.concatenate([[0], cuts, [elements]]).astype(np.int64))
        starts = offset + cuts[:-1]
        sequences = starts // plan.length
        whole = int(np.searchsorted(sequences, plan.rows[split]))  # the split's last, partial row is left out
        places = plan.base(split) + shuffled(sequences[:whole], plan.rows[split], plan.seeds[split])
        arrays = [pa.array(places), pa.array(starts[:whole])]
        for name, width in widths.items():
            ends = pa.py_buffer(cuts[: whole + 1] * width)
            values = chunks[name][number].as_buffer()
            arrays.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), whole, [None, ends, values]))
        yield pa.table(arrays, schema=pa.schema(fields))


# --- write -----------------------------------------------------------------------------------------


def layout(split: int, plan: Plan, attempt: str) -> list[Shard]:
    """Shards of a split: row groups of some megabytes, but enough of them for several readers to share."""
    rows, row_bytes = plan.rows[split], plan.row_bytes
    group = max(1, min(_GROUP_BYTES // row_bytes, -(-rows // _SMALL_GROUPS)))
    per_shard = group * max(1, _SHARD_BYTES // (group * row_bytes))
    shards = []
    for number, start in enumerate(range(0, rows, per_shard)):
        count = min(per_shard, rows - start)
        groups = (group,) * (count // group) + ((count % group,) if count % group else ())
        path = f"{SPLITS[split]}/part-{number:05d}-{attempt}.parquet"
        shards.append(Shard(path=path, start=start, row_groups=groups))
    return shards


def write_shard(pieces: pa.Table, plan: Plan, shards: list[list[Shard]], uri: str) -> pa.Table:
    """Join the pieces of one shard's rows and write it; gives its entry in the manifest."""
    files = []
    if len(pieces):
        pieces = pieces.sort_by([("place", "ascending"), ("element", "ascending")]).combine_chunks()
        places, elements = pieces["place"].to_numpy(), pieces["element"].to_numpy()
        split = max(number for number in range(len(plan.rows)) if plan.rows[number] and plan.base(number) <= places[0])
        start = int(places[0]) - plan.base(split)
        shard = next(shard for shard in shards[split] if shard.start == start)
        rows = shard.start + np.arange(shard.rows)
        _, heads = np.unique(places, return_index=True)
        batch = {"index": rows, "position": elements[heads] // plan.length}
        if not np.array_equal(places[heads] - plan.base(split), rows):
            raise RuntimeError(f"{shard.path}: its rows are not the ones it was planned for")
        for name, column in plan.columns.items():
            batch[name] = _joined(pieces[name].chunk(0), column.dtype).reshape(shard.rows, *column.shape)
        files.append(_upload(from_numpy(batch, plan.columns), uri, shard.path, shard.row_groups[0]))
    return pa.Table.from_pylist(files, _FILES)


_FILES = pa.schema({"path": pa.string(), "size": pa.int64(), "sha256": pa.string()})


def _joined(pieces: Any, dtype: str) -> np.ndarray:
    ends = np.frombuffer(pieces.buffers()[1], np.int64)[pieces.offset : pieces.offset + len(pieces) + 1]
    return np.frombuffer(pieces.buffers()[2], np.uint8)[ends[0] : ends[-1]].view(dtype)


def write_quarantine(rows: pa.Table, uri: str, attempt: str) -> pa.Table:
    """Write a block's quarantined rows, if it has any; gives the file's entry in the manifest."""
    rows = rows.filter(pc.equal(rows["fate"], QUARANTINED))
    if not len(rows):
        return _FILES.empty_table()
    name = f"{QUARANTINE_DIRECTORY}/part-{attempt}-{rows['digest'][0].as_py().hex()[:16]}.parquet"
    columns = [rows[column if column != "excerpt" else "payload"] for column in QUARANTINE]
    return pa.Table.from_pylist([_upload(pa.table(columns, names=QUARANTINE), uri, name, 1 << 16)], _FILES)


def _upload(table: pa.Table, uri: str, path: str, group_rows: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as local:
        pq.write_table(
            table,
            local.name,
            row_group_size=group_rows,
            compression="zstd",
            use_dictionary=False,
            write_statistics=["index"] if "index" in table.column_names else False,
            write_page_checksum=True,
        )
        size, digest = storage.upload(Path(local.name), storage.join(uri, path))
    return {"path": path, "size": size, "sha256": digest}
