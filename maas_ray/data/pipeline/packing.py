"""From kept rows to shards: rows are encoded, laid end to end, cut, globally shuffled and written.

    encode ─▶ chunks ─▶ plan, ends of rows ─▶ pack ─▶ pieces, sorted by place ─▶ write_shard

A chunk is a number of encoded rows, laid end to end, with the keys that order them. Prefix sums over the keys of all
chunks give the position of each row in its split (`ordering.ends_of_rows`), so each row can be cut at the ends of
stored rows without the others. If the end of a row cuts a stored row, the sort joins both pieces, because both carry
the stored row's final place. No result depends on how rows are cut into blocks or chunks. A row that is not packed is
one element for each stored row that it gives.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.kept_columns import KEPT, stored_columns
from maas_ray.data.manifest import Shard
from maas_ray.data.names import SPLITS
from maas_ray.data.pipeline.blocks import BLOCK_BYTES
from maas_ray.data.pipeline.ordering import Lookup, entries_in, starts_of
from maas_ray.data.pipeline.row_steps import Kept, in_order, kept_rows
from maas_ray.data.pipeline.rows import KEPT as ROW_KEPT
from maas_ray.data.profile import Profile, from_json, merge, of_rows, to_json
from maas_ray.data.shards import from_numpy, write_tables
from maas_ray.data.splits.hashing import shuffled, words_of
from maas_ray.errors import DataError, UnlearntError
from maas_ray.storage import FileEntry
from maas_ray.tasks import Column, Ragged, Row, Task, TaskSpec, load_task

NO_ROWS = (0,) * len(SPLITS)
_BATCH_ROWS, _BATCH_BYTES = 4096, 2 << 20
_GROUP_BYTES, _SHARD_BYTES, _SMALL_GROUPS = 2 << 20, 64 << 20, 16


def chunk_schema(task: Task, keep: tuple[str, ...] = ()) -> pa.Schema:
    """The schema of chunks. A chunk is one row that holds the bytes of encoded rows by column, laid end to end."""
    return pa.schema(
        {
            "split": pa.int64(),
            "entries": pa.large_binary(),  # the table `ordering.ENTRIES` of its rows, a column after the other
            "rows": pa.int64(),
            "elements": pa.int64(),  # tokens for a packed task, else stored rows
            "copies": pa.int64(),  # further copies of rows, by their weight
            "dropped": pa.string(),  # JSON: dropped rows, by reason
            "unlearnt": pa.string(),  # JSON: the reasons that fitting on these rows would have prevented
            "profile": pa.string(),  # JSON: statistics of the rows, see `maas_ray.data.profile`
            **dict.fromkeys([*task.stored, *stored_columns(keep)], pa.large_binary()),
        }
    )


def encode(
    rows: pa.Table, files: dict[str, bytes], task_spec: TaskSpec, keep: tuple[str, ...] = ()
) -> Iterator[pa.Table]:
    """Encode kept rows with the saved task, so that no other task ever encodes."""
    # There is a worker for each core; threads of each of them would share one cache behind a lock.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    task = loaded(files)
    rows = in_order(rows.filter(pc.equal(rows["fate"], ROW_KEPT)))
    columns = [rows[name].to_numpy() for name in ("key", "exact", "weight", "row")]
    columns.insert(1, words_of(rows["digest"])[:, 1])
    keys = np.stack([column.view(np.int64) for column in columns])
    schema = chunk_schema(task, keep)
    batch: list[Kept] = []
    size = 0.0
    for kept in kept_rows(rows, task_spec, keep):
        full = len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES
        if batch and (full or kept.split != batch[0].split):
            yield pa.Table.from_pylist([_chunk(batch, keys, task, keep)], schema)
            batch, size = [], 0.0
        batch += [kept, *[kept._replace(rows=0, times=0)] * (kept.times - 1)]
        size += kept.times * task.growth * sum(map(_size, kept.row.values()))
    yield pa.Table.from_pylist([_chunk(batch, keys, task, keep)] if batch else [], schema)


def _size(value: Any) -> int:
    """Approximate size of a value in bytes."""
    return value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, (str, bytes)) else 8


def saved(task: Task) -> dict[str, bytes]:
    """The files of a saved task."""
    with tempfile.TemporaryDirectory() as directory:
        task.save(Path(directory))
        paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def loaded(files: dict[str, bytes]) -> Task:
    """The inverse of `saved`."""
    with tempfile.TemporaryDirectory() as directory:
        for name, content in files.items():
            (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(directory) / name).write_bytes(content)
        return load_task(Path(directory))


def _chunk(batch: list[Kept], keys: np.ndarray, task: Task, keep: tuple[str, ...]) -> dict[str, Any]:
    """A chunk of rows of one split; `keys` are the columns of `ENTRIES` but the last, for all rows of the table."""
    good = batch
    dropped: Counter[str] = Counter()
    unlearnt: set[str] = set()
    try:
        encoded = task.encode([kept.row for kept in good])
    except ValueError:
        good, dropped, unlearnt = _encodable(batch, task)
        encoded = task.encode([kept.row for kept in good]) if good else {name: [] for name in task.stored}
    counts = _elements(good, encoded, task)
    elements = int(counts.sum())
    columns: dict[str, Any] = {}
    for name, column in task.stored.items():
        values = encoded[name]
        if isinstance(values, Ragged):
            columns[name] = np.ascontiguousarray(values.values, column.dtype).data
        elif task.packing:
            columns[name] = b"".join(np.ascontiguousarray(value, column.dtype).data for value in values)
        else:
            columns[name] = np.ascontiguousarray(values, column.dtype).tobytes()
    if keep and elements != len(good):
        raise DataError(
            f"keep: {task.spec.type} does not store a row for each row; remove `keep`.", code="keep_unsupported"
        )
    for name in stored_columns(keep):
        columns[name] = b"".join(kept.row[KEPT][name] for kept in good)
    rows = sum(kept.rows for kept in good)
    entries = np.vstack([keys[:, [kept.at for kept in good]], counts]).tobytes()
    chunk = {"split": batch[0].split, "entries": entries, "rows": rows, "elements": elements}
    chunk["copies"] = sum(not kept.times for kept in good)
    traits = task.traits([kept.row for kept in good], encoded) if good else ()
    chunk["profile"] = to_json(of_rows(SPLITS[batch[0].split], traits))
    return chunk | {"dropped": json.dumps(dropped), "unlearnt": json.dumps(sorted(unlearnt))} | columns


def _elements(rows: list[Kept], encoded: dict[str, Any], task: Task) -> np.ndarray:
    """The number of elements of each row, int64 [rows]."""
    values = next(iter(encoded.values()))
    if isinstance(values, Ragged):
        return values.lengths
    if task.packing:
        return np.fromiter(map(len, values), np.int64, len(rows))
    if len(values) == len(rows):
        return np.ones(len(rows), np.int64)
    alone = (next(iter(task.encode([kept.row]).values())) for kept in rows)  # a series gives many windows
    return np.fromiter(map(len, alone), np.int64, len(rows))


def _encodable(batch: list[Kept], task: Task) -> tuple[list[Kept], Counter[str], set[str]]:
    """The rows that can be encoded, the reasons why others cannot, and those that fitting would have prevented."""
    good, dropped, unlearnt = [], Counter[str](), set()
    for kept in batch:
        try:
            task.encode([kept.row])
        except ValueError as error:
            dropped[str(error)] += kept.rows
            unlearnt |= {str(error)} if isinstance(error, UnlearntError) else set()
        else:
            good.append(kept)
    return good, dropped, unlearnt


def listing(chunks: pa.Table) -> pa.Table:
    """The chunks without their values. The profile of the whole block is in the first row."""
    whole = to_json(merge(map(from_json, chunks["profile"].to_pylist())))
    profiles = pa.array([whole, *[""] * (len(chunks) - 1)][: len(chunks)], pa.string())
    listed = chunks.select(["split", "rows", "elements", "copies", "dropped", "unlearnt"])
    return listed.append_column("profile", profiles)


@dataclass(frozen=True)
class Plan:
    """The place of every stored row, by split number.

    Args:
        columns: the stored columns.
        length: elements in a stored row; a row that is not packed is one element.
        packed: whether stored rows are cut from rows laid end to end.
        elements: elements of each split.
        rows: stored rows of each split.
        seeds: the seed of each split's shuffle.
        before: rows that each split has already, which are not moved.
    """

    columns: dict[str, Column]
    length: int
    packed: bool
    elements: tuple[int, ...]
    rows: tuple[int, ...]
    seeds: tuple[str, ...]
    before: tuple[int, ...] = NO_ROWS

    def width(self, name: str) -> int:
        """Bytes of one element of a column."""
        column = self.columns[name]
        return int(np.prod(() if self.packed else column.shape)) * np.dtype(column.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return sum(self.width(name) for name in self.columns) * self.length

    def base(self, split: int) -> int:
        """Place of the split's first row; the splits follow each other."""
        return sum(self.rows[:split])


@dataclass(frozen=True)
class Sizes:
    """Totals of all chunks by split, rows that could not be encoded by reason, and statistics of the rows."""

    rows: dict[str, int]
    elements: dict[str, int]
    dropped: Counter[str]
    copies: int
    unlearnt: Counter[str]
    """Rows that could not be encoded because the task was not fitted on such values."""
    profile: Profile


def plan_of(
    listed: Iterable[Row],
    task: Task,
    seed: int,
    keep: tuple[str, ...] = (),
    before: tuple[int, ...] = NO_ROWS,
) -> tuple[Plan, Sizes]:
    """The place of every stored row, from the listing of all chunks.

    Args:
        listed: see `listing`.
        task: the fitted task.
        seed: of the global shuffle.
        keep: columns to keep.
        before: rows that each split has already.

    Raises:
        DataError: there are too few rows to train on.
    """
    rows, elements = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    dropped, unlearnt = Counter[str](), set[str]()
    copies = 0
    profile: Profile = {}
    for chunk in listed:
        split = SPLITS[chunk["split"]]
        elements[split] += chunk["elements"]
        rows[split] += chunk["rows"]
        copies += chunk["copies"]
        dropped.update(json.loads(chunk["dropped"]))
        unlearnt.update(json.loads(chunk["unlearnt"]))
        if chunk["profile"]:
            profile = merge([profile, from_json(chunk["profile"])])
    length = task.packing.length if task.packing else 1
    if not elements["train"] and dropped and not before[0]:
        reasons = "".join(f"\n  {count:,} × {reason}" for reason, count in dropped.most_common(3))
        raise DataError(f"no row is left to train on; rows were dropped because:{reasons}", code="nothing_to_train_on")
    if elements["train"] < length and not before[0]:
        raise DataError(
            f"the training split holds {elements['train']:,} {task.unit}, less than one sequence of {length:,}. "
            "Give more data, or choose a shorter sequence_length.",
            code="nothing_to_train_on",
        )
    plan = Plan(
        columns={**task.stored, **stored_columns(keep)},
        length=length,
        packed=task.packing is not None,
        elements=tuple(elements.values()),
        rows=tuple(elements[split] // length for split in SPLITS),
        seeds=tuple(f"{seed}/{split}" for split in SPLITS),
        before=before,
    )
    not_learnt = Counter({reason: dropped[reason] for reason in sorted(unlearnt)})
    return plan, Sizes(rows, elements, dropped, copies, not_learnt, profile)


def pack(chunks: pa.Table, plan: Plan, ends: Lookup) -> Iterator[pa.Table]:
    """Cut rows at the ends of stored rows. Each piece carries its elements' position, and the stored row's final place.

    Args:
        chunks: a block.
        plan: the places of stored rows.
        ends: see `ordering.ends_of_rows`.
    """
    widths = {name: plan.width(name) for name in plan.columns}
    fields = {"place": pa.int64(), "element": pa.int64(), **dict.fromkeys(widths, pa.large_binary())}
    yield pa.schema(fields).empty_table()
    for number, content in enumerate(chunks["entries"]):
        split = chunks["split"][number].as_py()
        *_, rows, counts = entries_in(content)
        if (part := ends.part(rows)) is None:
            continue
        starts = starts_of(rows, counts, part) - sum(plan.elements[:split])
        first = starts // plan.length
        pieces = np.where(counts, (starts + counts - 1) // plan.length - first + 1, 0)
        row = np.repeat(np.arange(len(rows)), pieces)
        sequences = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        elements = np.maximum(starts[row], sequences * plan.length)
        cuts = np.append((np.cumsum(counts) - counts - starts)[row] + elements, counts.sum())
        whole = sequences < plan.rows[split]  # the last, partial row of the split is dropped
        places = np.zeros_like(sequences)
        places[whole] = plan.base(split) + shuffled(sequences[whole], plan.rows[split], plan.seeds[split])
        arrays = [pa.array(places), pa.array(elements)]
        for name, width in widths.items():
            values = chunks[name][number].as_buffer()
            buffers = [None, pa.py_buffer(cuts * width), values]
            arrays.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(row), buffers))
        table = pa.table(arrays, schema=pa.schema(fields))
        yield table if whole.all() else table.filter(pa.array(whole))


def layout(split: int, plan: Plan, attempt: str, first: int = 0) -> list[Shard]:
    """Shards of a split: row groups of some megabytes, but enough of them for several readers to share.

    Args:
        split: its number.
        plan: the places of rows.
        attempt: part of the files' names.
        first: number of the first shard, after the shards that the split has already.
    """
    rows, row_bytes, before = plan.rows[split], plan.row_bytes, plan.before[split]
    group = max(1, min(_GROUP_BYTES // row_bytes, -(-(before + rows) // _SMALL_GROUPS)))
    per_shard = group * max(1, _SHARD_BYTES // (group * row_bytes))
    shards = []
    for number, start in enumerate(range(0, rows, per_shard), start=first):
        count = min(per_shard, rows - start)
        groups = (group,) * (count // group) + ((count % group,) if count % group else ())
        path = f"{SPLITS[split]}/part-{number:05d}-{attempt}.parquet"
        shards.append(Shard(path=path, start=before + start, row_groups=groups))
    return shards


def parts_of(shard: Shard, row_bytes: int) -> list[int]:
    """The first stored row of each part that a shard is written in: whole row groups, a block or so."""
    rows = shard.row_groups[0] * max(1, BLOCK_BYTES // (shard.row_groups[0] * row_bytes))
    return [shard.start + row for row in range(0, shard.rows, rows)]


def write_shard(parts: Iterable[pa.Table], plan: Plan, split: int, shard: Shard, uri: str) -> FileEntry:
    """Join the pieces of a shard's rows and write the shard; gives its entry in the manifest.

    Args:
        parts: the pieces of each part, see `parts_of`.
        plan: the places of rows.
        split: the number of the shard's split.
        shard: the shard.
        uri: the dataset.
    """

    def tables() -> Iterator[pa.Table]:
        done = 0
        for pieces in parts:
            batch = _stored(pieces, plan, split)
            rows = shard.start + done + np.arange(len(batch["index"]))
            if not np.array_equal(batch["index"], rows):
                raise RuntimeError(f"{shard.path}: its rows are not the ones it was planned for")
            done += len(rows)
            yield from_numpy(batch, plan.columns)
        if done != shard.rows:
            raise RuntimeError(f"{shard.path}: {done} rows were written, not {shard.rows}")

    return write_tables(tables(), uri, shard.path, shard.row_groups[0])


def _stored(pieces: pa.Table, plan: Plan, split: int) -> dict[str, np.ndarray]:
    """Stored rows of a split by column, from all of their pieces."""
    pieces = pieces.sort_by([("place", "ascending"), ("element", "ascending")]).combine_chunks()
    places, heads = np.unique(pieces["place"].to_numpy(), return_index=True)
    before = plan.before[split]
    positions = before + pieces["element"].to_numpy()[heads] // plan.length
    batch = {"index": before + places - plan.base(split), "position": positions}
    for name, column in plan.columns.items():
        batch[name] = _joined(pieces[name].chunk(0), column.dtype).reshape(len(places), *column.shape)
    return batch


def _joined(pieces: Any, dtype: str) -> np.ndarray:
    ends = np.frombuffer(pieces.buffers()[1], np.int64)[pieces.offset : pieces.offset + len(pieces) + 1]
    return np.frombuffer(pieces.buffers()[2], np.uint8)[ends[0] : ends[-1]].view(dtype)
