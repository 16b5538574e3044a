"""The first step over rows: read, clean and parse them, and hash their content.

Each row gets its split and an outcome: kept, dropped or quarantined. Every row that is read stays a row to the end, so
that the counts add up. Nothing here depends on how files are cut into blocks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from maas_ray.data.cleaning import CleaningStep, Dropped, Notes, clean_row
from maas_ray.data.cleaning.pii import Pii
from maas_ray.data.dedup.minhash import NearDuplicates, band_keys_of
from maas_ray.data.dedup.normalise import normalised, text_of
from maas_ray.data.kept_columns import columns_to_read, kept
from maas_ray.data.names import DROP_PREFIX
from maas_ray.data.pipeline.objects import packed, unpacked
from maas_ray.data.pipeline.rows import (
    EMPTY,
    KEPT,
    NO_SPLIT,
    PART_BITS,
    QUARANTINED,
    ROWS,
    SAMPLED_OUT,
    Packer,
    excerpt_of,
    printable,
)
from maas_ray.data.reading import Part, Raw, inspect, read
from maas_ray.data.sources import AnySource
from maas_ray.data.spec import PrepareSpec
from maas_ray.data.splits.assignment import named, split_of, stratum_of
from maas_ray.data.splits.hashing import content_bytes, fraction, leading, sort_key
from maas_ray.data.splits.series import joined
from maas_ray.data.splits.spec import Splits
from maas_ray.tasks import Row, TaskSpec
from maas_ray.tasks.cells import category, name_of
from maas_ray.tasks.rows import OPTIONAL_PREFIX

_BATCH_ROWS, _BATCH_BYTES = 1 << 14, 8 << 20


@dataclass(frozen=True)
class Reading:
    """Everything that a worker needs to read rows.

    Args:
        task: the task that the rows are for.
        splits: how rows are assigned to splits.
        keep: columns to keep; they decide nothing.
        steps: cleaning steps that need no statistics.
        columns: further columns to read, for splitting or cleaning.
        normalise: whether texts that differ only in case and white space are duplicates.
        near: how near-duplicates are found. None: they are not searched for.
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
        """True if a step removes personal data. Then rows that are dropped before that step get no excerpt."""
        return any(isinstance(step, Pii) for step in self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns to read."""
        further = (name for name in self.columns if name not in self.task.columns)
        dropped = (DROP_PREFIX + name for name in self.task.drops)
        optional = (OPTIONAL_PREFIX + name for name in self.task.optional)
        return (*columns_to_read(self.task.columns, dict.fromkeys((*self.keep, *further))), *dropped, *optional)


def reading_of(spec: PrepareSpec) -> Reading:
    """How the rows of a spec are read."""
    return Reading(
        task=spec.task,
        splits=spec.splits,
        keep=spec.keep,
        steps=spec.early_steps,
        columns=(*spec.splits.reads, *(name for step in spec.clean for name in step.reads)),
        normalise=spec.deduplicate.normalise,
        near=spec.deduplicate.near,
    )


def inspect_files(items: pa.Table, sources: tuple[AnySource, ...], columns: tuple[str, ...]) -> Iterator[pa.Table]:
    """Inspect files. Each item is the source's number, the file, and an earlier inspection that may still hold."""
    for number, file, before in unpacked(items):
        yield packed([(number, inspect(sources[number], file, columns, before))])


class _Cleaned(NamedTuple):
    """A raw row as cleaned, or the reason why a step dropped it; and the changes that steps made.

    `named` is the value that decides its split, or the name of its series, as the source gave it; see
    `assignment.named`.
    """

    raw: Raw
    reason: str = ""
    notes: Notes = Notes()
    named: str = ""


def read_rows(parts: pa.Table, reading: Reading) -> Iterator[pa.Table]:
    """Read, clean and parse numbered parts. Each row gets its digests, its split and its outcome."""
    batch, packer, size = _batch(), Packer(), 0
    for number, part in unpacked(parts):
        file, weight = printable(part.file.file.uri), part.source.weight
        for index, cleaned in enumerate(_cleaned_rows(part, reading)):
            record = _record(cleaned, reading, packer, weight)
            raw = cleaned.raw
            record["row"], record["weight"] = number << PART_BITS | index, weight
            record["position"], record["rows"] = raw.position, raw.rows
            record["file"], record["path"] = packer.path(file, printable(raw.path))
            record["notes"] = json.dumps(cleaned.notes) if cleaned.notes else None
            for name, values in batch.items():
                values.append(record.get(name))
            size += len(record["payload"])
            if size >= _BATCH_BYTES or len(batch["row"]) >= _BATCH_ROWS:
                yield _table(batch, reading)
                batch, packer, size = _batch(), Packer(), 0
    yield _table(batch, reading)


def _batch() -> dict[str, list[Any]]:
    """Empty columns. `bands` is filled with texts first; `_table` turns them into keys."""
    return {name: [] for name in ROWS.names}


def _table(batch: dict[str, list[Any]], reading: Reading) -> pa.Table:
    if reading.near is None:
        batch["bands"] = [b""] * len(batch["row"])
    else:
        keys_of = dict(zip(*band_keys_of((text or "" for text in batch["bands"]), reading.near), strict=True))
        batch["bands"] = [keys_of[index].tobytes() if index in keys_of else b"" for index in range(len(batch["row"]))]
    return pa.table([pa.array(batch[field.name], field.type) for field in ROWS], schema=ROWS)


def _cleaned_rows(part: Part, reading: Reading) -> Iterator[_Cleaned]:
    """The cleaned rows of a part. Steps of series are joined after cleaning; their notes go with the joined rows."""
    cleaned = (_cleaned(raw, reading) for raw in read(part, reading.names))
    if reading.task.steps is None:
        yield from cleaned
        return
    dropped: list[_Cleaned] = []
    notes = Notes()
    names: dict[str, str] = {}

    def steps() -> Iterator[Raw]:
        for one in cleaned:
            notes.update(one.notes)
            if one.reason:
                dropped.append(one._replace(notes=Notes()))
            else:
                yield _in_its_series(one, reading.task.steps.series, names) if reading.task.steps else one.raw

    for raw in joined(steps(), reading.task.steps, reading.splits.shares):
        yield _Cleaned(raw, notes=Notes(notes))
        notes.clear()
    yield from dropped


def _in_its_series(step: _Cleaned, column: str | None, names: dict[str, str]) -> Raw:
    """A step of a series, whose name after cleaning no other series of the file has: not all are `<EMAIL_ADDRESS>`.

    Args:
        step: the step.
        column: the column that tells series apart.
        names: names after cleaning, by the names before.
    """
    raw = step.raw
    if raw.row is None or column is None:
        return raw
    cleaned = name_of(raw.row[column])
    if step.named not in names:
        names[step.named] = cleaned if cleaned == step.named else f"{cleaned} {len(names) + 1}"
    name = names[step.named]
    return raw if name == cleaned else replace(raw, row={**raw.row, column: name})


def _cleaned(raw: Raw, reading: Reading) -> _Cleaned:
    notes = Notes(raw.notes)
    if raw.row is None:
        return _Cleaned(raw, notes=notes)
    name = named(reading.splits, raw.row) if raw.split is None else ""
    if reading.task.steps is not None and reading.task.steps.series is not None:
        name = name_of(raw.row[reading.task.steps.series])
    if not reading.steps:
        return _Cleaned(raw, notes=notes, named=name)
    try:
        row = clean_row(reading.steps, raw.row, notes)
        return _Cleaned(replace(raw, row=row, error=""), notes=notes, named=name)
    except Dropped as dropped:
        return _Cleaned(raw, str(dropped), notes)
    except ValueError as error:
        return _Cleaned(replace(raw, row=None, error=str(error)), notes=notes)


def _record(cleaned: _Cleaned, reading: Reading, packer: Packer, weight: float) -> dict[str, Any]:
    """The columns of a row that depend on its content."""
    raw, task = cleaned.raw, reading.task
    outcome, error = cleaned.reason or QUARANTINED, raw.error
    if raw.row is not None and not cleaned.reason:
        try:
            kept(raw.row, reading.keep)
            parsed = task.parse_row(raw.row)
            if parsed is not None:
                return _parsed_record(raw, raw.row, parsed, cleaned.named, reading, packer, weight)
            outcome = EMPTY
        except ValueError as caught:
            error = str(caught)
    digest = sha256(f"{raw.path}\0{raw.position}".encode(errors="replace")).digest()
    record = {"key": sort_key(NO_SPLIT, digest), "digest": digest, "exact": leading(digest), "inputs": 0}
    excerpt = b"" if outcome == EMPTY or reading.redacts else raw.excerpt
    return record | {"fate": outcome, "error": printable(error), "payload": excerpt}


def _parsed_record(
    raw: Raw, row: Row, parsed: Row, name: str, reading: Reading, packer: Packer, weight: float
) -> dict[str, Any]:
    digests = _digests(parsed, reading)
    split = raw.split if raw.split is not None else split_of(reading.splits, name, digests.inputs)
    stratum = None if raw.split is not None else stratum_of(reading.splits, name)
    inputs = leading(digests.inputs)
    # A row dropped by weight is dropped before rows are compared, so that no other row is dropped as its duplicate.
    sampled_out = weight < 1 and split == 0 and stratum is None and fraction(np.array([inputs]))[0] >= weight
    shape, payload = (None, excerpt_of(row)) if sampled_out else packer.row(row)
    return {
        "key": sort_key(split, digests.normalised),
        "digest": digests.normalised,
        "exact": leading(digests.exact),
        "inputs": inputs,
        "stratum": stratum,
        "bands": None if reading.near is None else text_of(parsed, reading.task.inputs),
        "fate": SAMPLED_OUT if sampled_out else KEPT,
        "error": "",
        "shape": shape,
        "payload": payload,
    }


class _Digests(NamedTuple):
    """Sha256 of a row's content as written, as compared, and without the answer."""

    exact: bytes
    normalised: bytes
    inputs: bytes


def _digests(parsed: Row, reading: Reading) -> _Digests:
    parts = {name: content_bytes(parsed[name]) for name in sorted(parsed)}
    exact = digest = sha256(b"".join(parts.values())).digest()
    changed = False
    for name, value in parsed.items():
        if (compared := _compared(value, reading.normalise)) is not value:
            parts[name], changed = content_bytes(compared), True
    if changed:
        digest = sha256(b"".join(parts.values())).digest()
    inputs = digest
    if {*reading.task.inputs} != {*parsed}:
        inputs = sha256(b"".join([parts[name] for name in reading.task.inputs])).digest()
    return _Digests(exact, digest, inputs)


def _compared(value: Any, normalise: bool) -> Any:
    """A value in the form in which it is compared; the same object if that is how it was written.

    Texts are normalised. Cells of a table are not, because their case may count, but a cell has one form whether its
    file holds integers or floats, and whether it is null or absent.
    """
    if isinstance(value, dict):
        cells = ((name, cell) for name, cell in value.items() if cell is not None)
        return {name: category(cell) if isinstance(cell, int | float | str) else cell for name, cell in cells}
    if not normalise:
        return value
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, (list, tuple)):
        return [_compared(item, normalise) for item in value]
    return value
