"""From files to rows in the order of their content, each with its fate: kept, dropped, duplicate, quarantined.

Every function here takes one Arrow block, and none depends on how rows are cut into blocks. Every row that
is read stays a row to the end, so that what was counted adds up.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.cleaning import CleaningStep, Dropped, Notes, clean_row
from maas_ray.data.cleaning.pii import Pii
from maas_ray.data.dataset import QUARANTINE_DIRECTORY, REMOVED_DIRECTORY, SPLITS, write_table
from maas_ray.data.dedup.decontaminate import Decontaminate, ngram_hashes
from maas_ray.data.dedup.minhash import NearDuplicates, band_keys_of
from maas_ray.data.dedup.normalise import normalised, text_of
from maas_ray.data.dedup.verdicts import Verdicts
from maas_ray.data.kept_columns import KEPT as KEEP
from maas_ray.data.kept_columns import columns_to_read, kept
from maas_ray.data.pipeline.rows import ROWS, Packer, paths_of, raw_of
from maas_ray.data.pipeline.series import joined
from maas_ray.data.reading import Part, Raw, inspect, read
from maas_ray.data.sources import AnySource
from maas_ray.data.splits.hashing import SPLIT_BITS, content_bytes, fraction, leading, sort_key
from maas_ray.data.splits.spec import Splits, rekeyed
from maas_ray.tasks import Row, TaskSpec

ASIDE = len(SPLITS)
"""Number of the split that rows without content are counted in: dropped before they were parsed, or unreadable."""
KEPT, EMPTY, QUARANTINED = "", "empty", "quarantined"
DUPLICATE, NEAR_DUPLICATE, CONTAMINATED = "duplicate", "near-duplicate", "contaminated"
SAMPLED_OUT = "weight"
NOTED = "noted"
"""Fates. Any other is the reason that a cleaning step gave, which begins with the step's name."""

EXCERPT_BYTES = 200
_BATCH_ROWS, _BATCH_BYTES = 1 << 14, 8 << 20
PART_BITS = 32
"""A row's number is its part's above this many bits of its place there."""
_SLICE_ROWS = 1 << 10

QUARANTINE = ("path", "position", "rows", "error", "excerpt")
REMOVED = ("row", "path", "position", "rows", "fate", "like", "excerpt")


@dataclass(frozen=True)
class Reading:
    """How rows are read: everything a worker has to know.

    Args:
        task: what they are for.
        splits: which split each falls into.
        keep: columns to keep, which decide nothing.
        steps: cleaning that needs no statistics.
        columns: further columns to read, for splitting or cleaning.
        normalise: whether texts that differ in case and white space alone are duplicates.
        near: how near-duplicates are found. None: they are not looked for.
    """

    task: TaskSpec
    splits: Splits
    keep: tuple[str, ...] = ()
    steps: tuple[CleaningStep, ...] = ()
    columns: tuple[str, ...] = ()
    normalise: bool = True
    near: NearDuplicates | None = None

    @property
    def redacts(self) -> bool:
        """Whether rows hold what a step takes out: of those that are left out before that, nothing is shown."""
        return any(isinstance(step, Pii) for step in self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns to read."""
        further = (name for name in self.columns if name not in self.task.columns)
        return columns_to_read(self.task.columns, dict.fromkeys((*self.keep, *further)))


def packed(items: Iterable[Any]) -> pa.Table:
    """Python objects as a block, one a row."""
    return pa.table({"item": pa.array([pickle.dumps(item) for item in items], pa.large_binary())})


def unpacked(block: pa.Table) -> Iterator[Any]:
    """The objects in a block of `packed`."""
    for item in block["item"].to_pylist():
        yield pickle.loads(item)  # noqa: S301  written by another process of this very job


def inspect_files(items: pa.Table, sources: tuple[AnySource, ...], columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Look at files, each given with its source's number and what a look before found that may still hold."""
    for number, file, before in unpacked(items):
        yield packed([(number, inspect(sources[number], file, columns, before))])


class Found(NamedTuple):
    """A raw row as cleaned, or the reason why a step dropped it; and what steps changed."""

    raw: Raw
    reason: str = ""
    notes: Notes = Notes()


def read_rows(parts: pa.Table, reading: Reading) -> Iterator[pa.Table]:
    """Read, clean and parse numbered parts; each row gets its digests, its split and its fate."""
    batch, packer, size = _batch(), Packer(), 0
    for number, part in unpacked(parts):
        file, weight = _printable(part.file.file.uri), part.source.weight
        for place, found in enumerate(_found(part, reading)):
            record = _record(found, reading, packer, weight)
            raw = found.raw
            record["row"], record["weight"] = number << PART_BITS | place, weight
            record["position"], record["rows"] = raw.position, raw.rows
            record["file"], record["path"] = packer.path(file, _printable(raw.path))
            record["notes"] = json.dumps(found.notes) if found.notes else None
            for name, values in batch.items():
                values.append(record.get(name))
            size += len(record["payload"])
            if size >= _BATCH_BYTES or len(batch["row"]) >= _BATCH_ROWS:
                yield _table(batch, reading)
                batch, packer, size = _batch(), Packer(), 0
    yield _table(batch, reading)


def _batch() -> dict[str, list[Any]]:
    """Columns to be filled; `bands` are made of the texts that stand there."""
    return {name: [] for name in ROWS.names}


def _table(batch: dict[str, list[Any]], reading: Reading) -> pa.Table:
    if reading.near is None:
        batch["bands"] = [b""] * len(batch["row"])
    else:
        keys_of = dict(zip(*band_keys_of((text or "" for text in batch["bands"]), reading.near), strict=True))
        batch["bands"] = [keys_of[place].tobytes() if place in keys_of else b"" for place in range(len(batch["row"]))]
    return pa.table([pa.array(batch[field.name], field.type) for field in ROWS], schema=ROWS)


def _found(part: Part, reading: Reading) -> Iterator[Found]:
    """The rows of a part as cleaned; steps of series are joined after that, and say together what was changed."""
    cleaned = (_cleaned(raw, reading.steps) for raw in read(part, reading.names))
    if reading.task.steps is None:
        yield from cleaned
        return
    aside: list[Found] = []
    notes = Notes()

    def well() -> Iterator[Raw]:
        for found in cleaned:
            notes.update(found.notes)
            if found.reason:
                aside.append(found._replace(notes=Notes()))
            else:
                yield found.raw

    for raw in joined(well(), reading.task.steps, reading.splits.shares):
        yield Found(raw, notes=Notes(notes))
        notes.clear()
    yield from aside


def _cleaned(raw: Raw, steps: tuple[CleaningStep, ...]) -> Found:
    if raw.row is None or not steps:
        return Found(raw)
    notes = Notes()
    try:
        return Found(_with_row(raw, clean_row(steps, raw.row, notes)), notes=notes)
    except Dropped as dropped:
        return Found(raw, str(dropped), notes)
    except ValueError as error:
        return Found(_with_row(raw, None, str(error)))


def _with_row(raw: Raw, row: Row | None, error: str = "") -> Raw:
    return replace(raw, row=row, error=error)


def _record(found: Found, reading: Reading, packer: Packer, weight: float) -> dict[str, Any]:
    """What a row's content says of it."""
    raw, task = found.raw, reading.task
    fate, error = found.reason or QUARANTINED, raw.error
    if raw.row is not None and not found.reason:
        try:
            kept(raw.row, reading.keep)
            parsed = task.parse_row(raw.row)
            if parsed is not None:
                return _kept_record(found, raw.row, parsed, reading, packer, weight)
            fate = EMPTY
        except ValueError as caught:
            error = str(caught)
    digest = sha256(f"{raw.path}\0{raw.position}".encode(errors="replace")).digest()
    record = {"key": sort_key(ASIDE, digest), "digest": digest, "exact": leading(digest), "inputs": 0}
    excerpt = b"" if fate == EMPTY or reading.redacts else raw.excerpt
    return record | {"fate": fate, "error": _printable(error), "payload": excerpt}


def _kept_record(
    found: Found, raw: Row, parsed: Row, reading: Reading, packer: Packer, weight: float
) -> dict[str, Any]:
    task, given = reading.task, found.raw.split is not None
    parts = {name: content_bytes(parsed[name]) for name in sorted(parsed)}
    exact = digest = sha256(b"".join(parts.values())).digest()
    if reading.normalise:
        changed = False
        for name, value in parsed.items():
            if (same := _same(value)) is not value:
                parts[name], changed = content_bytes(same), True
        if changed:
            digest = sha256(b"".join(parts.values())).digest()
    inputs = digest
    if {*task.inputs} != {*parsed}:
        inputs = sha256(b"".join([parts[name] for name in task.inputs])).digest()
    split = found.raw.split if found.raw.split is not None else reading.splits.of(raw, inputs)
    stratum = None if given else reading.splits.stratum(raw)
    # Before others are compared with it: a row that is not there stands for none.
    out = weight < 1 and split == 0 and stratum is None and fraction(np.array([leading(inputs)]))[0] >= weight
    shape, payload = (None, excerpt_of(raw)) if out else packer.row(raw)
    return {
        "key": sort_key(split, digest),
        "digest": digest,
        "exact": leading(exact),
        "inputs": leading(inputs),
        "stratum": stratum,
        "bands": None if reading.near is None else text_of(parsed, task.inputs),
        "fate": SAMPLED_OUT if out else KEPT,
        "error": "",
        "shape": shape,
        "payload": payload,
    }


def _same(value: Any) -> Any:
    """A value as it is compared: of texts, their normal form. Cells of a table are none: case may tell them apart."""
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, (list, tuple)):
        return [_same(item) for item in value]
    return value


@lru_cache(1 << 10)
def _printable(text: str) -> str:
    """The text without what UTF-8 has no bytes for: a file's name on Linux may hold anything."""
    return text.encode(errors="backslashreplace").decode()


def split_counts(rows: pa.Table) -> pa.Table:
    """How many rows lie in each split, and aside."""
    return pa.table({"rows": np.bincount(rows["key"].to_numpy() >> SPLIT_BITS, minlength=ASIDE + 1)})


def key_ranges(shares: Iterable[float], blocks: int) -> list[int]:
    """Boundaries that cut the sort keys into about so many ranges of equal size, none of which spans splits.

    Args:
        shares: of the rows that lie in each split, and aside.
        blocks: how many ranges.
    """
    boundaries = []
    for split, share in enumerate(shares):
        ranges = max(1, round(share * blocks))
        boundaries += [(split << SPLIT_BITS) + (number << SPLIT_BITS) // ranges for number in range(ranges)]
    return boundaries[1:]


def settle(rows: pa.Table, exact: bool = True) -> pa.Table:
    """Order a range of keys wholly; mark duplicates of a row before, and rows that their weight leaves out.

    Args:
        rows: all rows of a range of keys.
        exact: whether a row whose like stands before it is a duplicate.
    """
    order = rows.select(["key", "digest", "exact", "weight", "row"])
    # Of equal rows the one that weighs most is kept, then the one of the source and file that are named first.
    by = [(name, "descending" if name == "weight" else "ascending") for name in order.column_names]
    rows = rows.take(pc.sort_indices(order, sort_keys=by))
    digests, fates, likes, numbers = (rows[name].to_pylist() for name in ("digest", "fate", "like", "row"))
    first: int | None = None
    for place in range(len(digests)):
        if fates[place] != KEPT:
            continue
        if exact and first is not None and digests[place] == digests[first]:
            fates[place], likes[place], likes[first] = DUPLICATE, numbers[first], numbers[first]
        else:
            first = place
    training = (rows["key"].to_numpy() >> SPLIT_BITS) == 0
    sampled_out = training & (fraction(rows["inputs"].to_numpy()) >= rows["weight"].to_numpy())
    for place in np.flatnonzero(sampled_out).tolist():
        fates[place] = SAMPLED_OUT if fates[place] == KEPT else fates[place]
    return marked(rows, fates, likes)


def marked(rows: pa.Table, fates: list[str], likes: list[int | None]) -> pa.Table:
    """Rows with these fates; what is not kept any more has an excerpt in place of its content."""
    before = rows["fate"].to_pylist()
    changed = [place for place, fate in enumerate(fates) if fate != before[place]]
    if changed:
        shapes, payloads = rows["shape"].to_pylist(), rows["payload"].to_pylist()
        for place in changed:
            shapes[place], payloads[place] = None, excerpt_of(raw_of(shapes[place], payloads[place]))
        for name, values in (("fate", fates), ("shape", shapes), ("payload", payloads)):
            rows = _with(rows, name, values)
    return _with(rows, "like", likes)


def _with(rows: pa.Table, name: str, values: Any) -> pa.Table:
    field = ROWS.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


def excerpt_of(row: Row) -> bytes:
    """The beginning of a raw row, for a person."""
    (alone,) = row.values() if len(row) == 1 else (None,)
    if isinstance(alone, bytes):
        return alone[:EXCERPT_BYTES]
    text = alone if isinstance(alone, str) else repr(row)
    return text[:EXCERPT_BYTES].encode(errors="backslashreplace")[:EXCERPT_BYTES]


def judged(rows: pa.Table, verdicts: Verdicts) -> pa.Table:
    """Rows as they were judged on the whole: duplicates are marked, and splits that were open are decided."""
    numbers, fates, likes = rows["row"].to_numpy(), rows["fate"].to_pylist(), rows["like"].to_pylist()
    for place, at in _hits(numbers, verdicts.rows):
        fates[place] = DUPLICATE if verdicts.exact[at] else NEAR_DUPLICATE
        likes[place] = int(verdicts.likes[at])
    for place, at in _hits(numbers, verdicts.representatives):
        likes[place] = int(verdicts.representatives[at])
    keys = rows["key"].to_numpy()
    if len(verdicts.inputs):
        places = np.searchsorted(verdicts.inputs, rows["inputs"].to_numpy()).clip(max=len(verdicts.inputs) - 1)
        known = verdicts.inputs[places] == rows["inputs"].to_numpy()
        open_ = known & ((keys >> SPLIT_BITS) == 0) & pc.is_valid(rows["stratum"]).to_numpy()
        keys = np.where(open_, rekeyed(keys, verdicts.splits[places]), keys)
    return marked(_with(rows, "key", keys), fates, likes)


def _hits(numbers: np.ndarray, known: np.ndarray) -> Iterator[tuple[int, int]]:
    """Places of numbers that are known, and where they stand among the known, which ascend."""
    places = np.searchsorted(known, numbers)
    for place in np.flatnonzero(places < len(known)):
        if known[places[place]] == numbers[place]:
            yield int(place), int(places[place])


def ngrams(rows: pa.Table, task: TaskSpec, how: Decontaminate, *, training: bool) -> Iterator[tuple[int, np.ndarray]]:
    """The hashes of each kept row's n-grams with its place, of rows to train on or of the others."""
    splits = rows["key"].to_numpy() >> SPLIT_BITS
    kept = (splits == 0 if training else splits != 0) & pc.equal(rows["fate"], KEPT).to_numpy()
    for place in np.flatnonzero(kept):
        parsed = task.parse_row(raw_of(rows["shape"][place].as_py(), rows["payload"][place].as_py()))
        yield int(place), ngram_hashes(text_of(parsed or {}, task.inputs), how.ngram)


def raw_rows(rows: pa.Table) -> Iterator[Row]:
    """The raw rows, as cleaned so far, that are kept."""
    for batch in rows.filter(pc.equal(rows["fate"], KEPT)).select(["shape", "payload"]).to_batches(_SLICE_ROWS):
        yield from map(raw_of, batch["shape"].to_pylist(), batch["payload"].to_pylist())


def cleaned(rows: pa.Table, steps: tuple[CleaningStep, ...], task: TaskSpec) -> pa.Table:
    """Rows after further cleaning steps, which change neither their split nor what they are duplicates by."""
    fates, errors, shapes, payloads = (rows[name].to_pylist() for name in ("fate", "error", "shape", "payload"))
    packer = Packer()
    notes = [Notes(json.loads(note)) if note else Notes() for note in rows["notes"].to_pylist()]
    for place in [place for place, fate in enumerate(fates) if fate == KEPT]:
        raw = raw_of(shapes[place], payloads[place])
        try:
            row = clean_row(steps, raw, notes[place])
            fates[place] = KEPT if task.parse_row(row) is not None else EMPTY
        except Dropped as dropped:
            fates[place] = str(dropped)
        except ValueError as error:
            fates[place], errors[place] = QUARANTINED, _printable(str(error))
        shapes[place], payloads[place] = packer.row(row) if fates[place] == KEPT else (None, excerpt_of(raw))
    texts = [json.dumps(note) if note else None for note in notes]
    columns = {"fate": fates, "error": errors, "shape": shapes, "payload": payloads, "notes": texts}
    for name, values in columns.items():
        rows = _with(rows, name, values)
    return rows


def tally(rows: pa.Table) -> pa.Table:
    """How many rows met which fate; errors that differ in numbers alone are counted as one."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    columns = (rows[name].to_pylist() for name in ("fate", "error", "rows", "position"))
    for fate, error, count, position, path in zip(*columns, paths_of(rows).to_pylist(), strict=True):
        kind = fate, re.sub(r"0x[0-9a-f]+|\d+", "#", error)
        counts[kind] += count
        found = f"{error} ({path}" + (f":{position})" if position else ")")
        example[kind] = min(example.get(kind, found), found)
    notes = Notes()
    for note in rows["notes"].drop_null().to_pylist():
        notes.update(json.loads(note))
    records = [
        {"fate": kind[0], "kind": kind[1], "example": example[kind], "rows": count} for kind, count in counts.items()
    ]
    records += [{"fate": NOTED, "kind": note, "example": "", "rows": count} for note, count in notes.items()]
    fields = {"fate": pa.string(), "kind": pa.string(), "example": pa.string(), "rows": pa.int64()}
    return pa.Table.from_pylist(records, pa.schema(fields))


class Kept(NamedTuple):
    """A row that is kept: its split's number, its digest, its parsed content, and how many rows it stands for.

    `times` is how often it is stored: by its weight, in the training split.
    """

    split: int
    digest: bytes
    row: Row
    rows: int
    times: int = 1


def kept_rows(rows: pa.Table, task: TaskSpec, keep: tuple[str, ...] = ()) -> Iterator[Kept]:
    """The rows that are kept; with columns to `keep`, these too."""
    rows = rows.filter(pc.equal(rows["fate"], KEPT))
    weights, inputs = rows["weight"].to_numpy(), rows["inputs"].to_numpy()
    times = iter((np.floor(weights) + (fraction(inputs) < weights % 1)).clip(min=1).astype(int).tolist())
    names = ["key", "digest", "rows", "shape", "payload"]
    for batch in rows.select(names).to_batches(_SLICE_ROWS):
        columns = (batch[name].to_pylist() for name in names)
        for key, digest, count, shape, payload, copies in zip(*columns, times, strict=False):
            raw = raw_of(shape, payload)
            row = task.parse_row(raw)
            if row is None:
                raise ValueError("a row that was not empty is empty now; the task's parse_row() is not a function")
            if keep:
                row = {**row, KEEP: kept(raw, keep)}
            split = key >> SPLIT_BITS
            yield Kept(split, digest, row, count, copies if split == 0 else 1)


def write_quarantine(rows: pa.Table, uri: str, attempt: str, secret: bool = False) -> pa.Table:
    """Write a block's quarantined rows, if it has any; gives the file's entry in the manifest.

    Of rows that are `secret`, since they may hold what a later step takes out, no excerpt is written.
    """
    rows = rows.filter(pc.equal(rows["fate"], QUARANTINED))
    if secret:
        rows = _with(rows, "payload", [b""] * len(rows))
    return _written(rows, QUARANTINE, QUARANTINE_DIRECTORY, uri, attempt)


def write_removed(rows: pa.Table, uri: str, attempt: str, secret: bool = False) -> pa.Table:
    """Write what was left out of a block and why, and the rows that duplicates are like; see `write_quarantine`."""
    out = pc.invert(pc.is_in(rows["fate"], pa.array([KEPT, QUARANTINED])))
    rows = rows.filter(pc.or_(out, pc.and_(pc.equal(rows["fate"], KEPT), pc.is_valid(rows["like"]))))
    columns = (rows[name].to_pylist() for name in ("fate", "shape", "payload"))
    short = [
        excerpt_of(raw_of(shape, payload)) if fate == KEPT else payload[:EXCERPT_BYTES]
        for fate, shape, payload in zip(*columns, strict=True)
    ]
    if secret:
        short = [b""] * len(rows)
    return _written(_with(rows, "payload", short), REMOVED, REMOVED_DIRECTORY, uri, attempt)


def write_named(rows: pa.Table, paths: list[str], uri: str, attempt: str) -> pa.Table:
    """Write rows of before that others were left out for, by their numbers and positions; gives the file's entry."""
    columns = {
        "row": rows["row"],
        "path": pa.array([_printable(path) for path in paths], pa.string()),
        "position": rows["position"],
        "rows": pa.array([1] * len(rows), pa.int64()),
        "fate": pa.array([KEPT] * len(rows), pa.string()),
        "like": rows["row"],
        "excerpt": pa.array([b""] * len(rows), pa.large_binary()),
    }
    table = pa.table({name: columns[name] for name in REMOVED})
    return written(table, f"{REMOVED_DIRECTORY}/part-{attempt}-before.parquet", uri)


def _written(rows: pa.Table, columns: tuple[str, ...], directory: str, uri: str, attempt: str) -> pa.Table:
    said = {"path": paths_of(rows), "rows": rows["rows"].cast(pa.int64()), "excerpt": rows["payload"]}
    arrays = [said[column] if column in said else rows[column] for column in columns]
    return written(pa.table(arrays, names=columns), f"{directory}/part-{attempt}-{name_of(rows)}.parquet", uri)


def name_of(rows: pa.Table) -> str:
    """What a block of ordered rows goes by: the split and the content of its first."""
    return f"{rows['key'][0].as_py():016x}{rows['digest'][0].as_py().hex()[:16]}" if len(rows) else "none"


def span_of(rows: pa.Table) -> str:
    """What a block of ordered rows goes by where it must be this one whole: its first, its last and their number."""
    return f"{name_of(rows)}-{rows['digest'][-1].as_py().hex()[:16]}-{len(rows)}" if len(rows) else "none"


def written(table: pa.Table, path: str, uri: str) -> pa.Table:
    """Write what is said of a block's rows, if anything is; gives the file's entry in the manifest."""
    return packed([write_table(table, uri, path, 1 << 16)] if len(table) else [])
