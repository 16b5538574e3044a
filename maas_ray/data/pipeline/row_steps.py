"""Steps over rows that were read: mark duplicates, order rows by content, clean them further, and count outcomes.

Each function takes one table of rows. No result depends on how rows are cut into tables, and every row stays a row to
the end, so that the counts add up. `read_rows` comes before; `global_steps` runs the steps that need all rows.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maas_ray.data.cleaning import CleaningStep, Dropped, Notes, clean_row
from maas_ray.data.dedup.normalise import text_of
from maas_ray.data.dedup.survivors import SURVIVAL_ORDER, Decisions
from maas_ray.data.kept_columns import KEPT as KEEP
from maas_ray.data.kept_columns import kept
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.rows import (
    DUPLICATE,
    EMPTY,
    KEPT,
    NEAR_DUPLICATE,
    QUARANTINED,
    SAMPLED_OUT,
    Packer,
    excerpt_of,
    paths_of,
    printable,
    raw_of,
    with_column,
)
from maas_ray.data.splits.assignment import rekeyed
from maas_ray.data.splits.hashing import SPLIT_BITS, fraction
from maas_ray.data.splits.stratify import Ends
from maas_ray.errors import InvalidError
from maas_ray.tasks import Row, TaskSpec
from maas_ray.tasks.fitting import Totals

TALLIED = ("fate", "error", "rows", "position", "file", "path", "notes")
"""Columns that `tally` reads."""
NOTED = "noted"
"""`fate` of the records in a tally that count changes by cleaning instead of rows."""
OTHER_ERRORS = "other errors"
"""The kind of errors beyond the most common ones."""
_SLICE_ROWS = 1 << 10
_MAX_KINDS = 200


def key_ranges(shares: Iterable[float], blocks: int) -> list[int]:
    """Boundaries that cut the sort keys into about `blocks` ranges of equal size. No range spans two splits.

    Args:
        shares: share of the rows in each split, and of rows without one.
        blocks: number of ranges.
    """
    boundaries = []
    for split, share in enumerate(shares):
        ranges = max(1, round(share * blocks))
        boundaries += [(split << SPLIT_BITS) + (number << SPLIT_BITS) // ranges for number in range(ranges)]
    return boundaries[1:]


def in_order(rows: pa.Table) -> pa.Table:
    """Rows by split and content, in an order that depends on nothing else; see `SURVIVAL_ORDER`."""
    order = rows.select([name for name, _ in SURVIVAL_ORDER])
    return rows.take(pc.sort_indices(order, sort_keys=list(SURVIVAL_ORDER)))


def training(rows: pa.Table) -> pa.Table:
    """The kept rows of the training split."""
    chosen = pc.equal(rows["fate"], KEPT).combine_chunks()
    return rows.filter(pc.and_(chosen, pa.array(rows["key"].to_numpy() >> SPLIT_BITS == 0)))


def marked(rows: pa.Table, outcomes: list[str], likes: list[int | None]) -> pa.Table:
    """Rows with these outcomes. A row that is no longer kept has an excerpt in place of its content."""
    before = rows["fate"].to_pylist()
    changed = [index for index, outcome in enumerate(outcomes) if outcome != before[index]]
    if changed:
        shapes, payloads = rows["shape"].to_pylist(), rows["payload"].to_pylist()
        for index in changed:
            shapes[index], payloads[index] = None, excerpt_of(raw_of(shapes[index], payloads[index]))
        for name, values in (("fate", outcomes), ("shape", shapes), ("payload", payloads)):
            rows = with_column(rows, name, values)
    return with_column(rows, "like", likes)


def settled(rows: pa.Table, decisions: Decisions, duplicates: pa.Table | None = None) -> pa.Table:
    """Rows as decided over all rows: duplicates are marked, open splits closed, and weights below one applied.

    Args:
        rows: a block.
        decisions: which duplicates survive, and the splits that were open.
        duplicates: exact duplicates in ascending order, if `decisions` does not know them; see
            `survivors.exact_duplicates`.
    """
    numbers, outcomes, likes = rows["row"].to_numpy(), rows["fate"].to_pylist(), rows["like"].to_pylist()
    for index, at in _matches(numbers, decisions.rows):
        outcomes[index] = DUPLICATE if decisions.exact[at] else NEAR_DUPLICATE
        likes[index] = int(decisions.likes[at])
    for index, at in _matches(numbers, decisions.survivors):
        likes[index] = int(decisions.survivors[at])
    if duplicates is not None:
        survivors = duplicates["like"].to_numpy()
        for index, at in _matches(numbers, duplicates["row"].to_numpy()):
            likes[index] = int(survivors[at])
            outcomes[index] = KEPT if likes[index] == numbers[index] else DUPLICATE
    if decisions.ends is not None:
        rows = with_column(rows, "key", _closed(rows, decisions, decisions.ends))
    training = (rows["key"].to_numpy() >> SPLIT_BITS) == 0
    sampled_out = training & (fraction(rows["inputs"].to_numpy()) >= rows["weight"].to_numpy())
    for index in np.flatnonzero(sampled_out).tolist():
        outcomes[index] = SAMPLED_OUT if outcomes[index] == KEPT else outcomes[index]
    return marked(rows, outcomes, likes)


def _closed(rows: pa.Table, decisions: Decisions, ends: Ends) -> np.ndarray:
    """The sort keys of rows in the splits that `ends` gives them, unless an old input decides."""
    keys, inputs = rows["key"].to_numpy(), rows["inputs"].to_numpy()
    splits = ends.splits(rows["stratum"].fill_null(0).to_numpy(), inputs)
    if len(decisions.inputs):
        indices = np.searchsorted(decisions.inputs, inputs).clip(max=len(decisions.inputs) - 1)
        splits = np.where(decisions.inputs[indices] == inputs, decisions.splits[indices], splits)
    is_open = ((keys >> SPLIT_BITS) == 0) & pc.is_valid(rows["stratum"]).to_numpy()
    return np.where(is_open, rekeyed(keys, splits), keys)


def _matches(numbers: np.ndarray, listed: np.ndarray) -> Iterator[tuple[int, int]]:
    """Indices of numbers that are listed, and their indices in the list, which ascends."""
    indices = np.searchsorted(listed, numbers)
    for index in np.flatnonzero(indices < len(listed)):
        if listed[indices[index]] == numbers[index]:
            yield int(index), int(indices[index])


def texts(rows: pa.Table, task: TaskSpec, *, training: bool) -> Iterator[tuple[int, str]]:
    """The index and the text of each kept row, for rows to train on or for all others."""
    splits = rows["key"].to_numpy() >> SPLIT_BITS
    chosen = (splits == 0 if training else splits != 0) & pc.equal(rows["fate"], KEPT).to_numpy()
    for index in np.flatnonzero(chosen):
        parsed = task.parse_row(raw_of(rows["shape"][index].as_py(), rows["payload"][index].as_py()))
        yield int(index), text_of(parsed or {}, task.inputs)


def raw_rows(rows: pa.Table) -> Iterator[Row]:
    """The kept rows, raw, as cleaned so far."""
    for batch in rows.filter(pc.equal(rows["fate"], KEPT)).select(["shape", "payload"]).to_batches(_SLICE_ROWS):
        yield from map(raw_of, batch["shape"].to_pylist(), batch["payload"].to_pylist())


def raw_totals(rows: pa.Table, totals: Totals) -> Iterator[pa.Table]:
    """Totals of the training rows of a block, raw, as cleaned so far."""
    yield _summed(totals, raw_rows(training(rows)))


def task_totals(rows: pa.Table, task: TaskSpec, totals: Totals) -> Iterator[pa.Table]:
    """Totals of the training rows of a block, as the task parses them."""
    yield _summed(totals, (kept.row for kept in kept_rows(training(rows), task)))


def _summed(totals: Totals, rows: Iterable[Row]) -> pa.Table:
    totals = copy.deepcopy(totals)  # a worker gets the same object for several blocks
    for row in rows:
        totals.add(row)
    return packed([totals.detached()])


def cleaned(rows: pa.Table, steps: tuple[CleaningStep, ...], task: TaskSpec) -> pa.Table:
    """Rows after further cleaning steps. These change neither a row's split nor its duplicates."""
    outcomes, errors, shapes, payloads = (rows[name].to_pylist() for name in ("fate", "error", "shape", "payload"))
    packer = Packer()
    notes = [Notes(json.loads(note)) if note else Notes() for note in rows["notes"].to_pylist()]
    for index in [index for index, outcome in enumerate(outcomes) if outcome == KEPT]:
        raw = raw_of(shapes[index], payloads[index])
        try:
            row = clean_row(steps, raw, notes[index])
            outcomes[index] = KEPT if task.parse_row(row) is not None else EMPTY
        except Dropped as dropped:
            outcomes[index] = str(dropped)
        except ValueError as error:
            outcomes[index], errors[index] = QUARANTINED, printable(str(error))
        shapes[index], payloads[index] = packer.row(row) if outcomes[index] == KEPT else (None, excerpt_of(raw))
    texts = [json.dumps(note) if note else None for note in notes]
    columns = {"fate": outcomes, "error": errors, "shape": shapes, "payload": payloads, "notes": texts}
    for name, values in columns.items():
        rows = with_column(rows, name, values)
    return rows


def tally(rows: pa.Table) -> pa.Table:
    """Rows by outcome, and changes by cleaning. Errors that differ only in numbers are counted together.

    If each row has an error of its own, the rarer ones are counted as one kind, so that a table stays small.
    """
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    is_kept = pc.equal(rows["fate"], KEPT)
    if kept_count := pc.sum(rows["rows"].filter(is_kept)).as_py():
        counts[KEPT, ""], examples[KEPT, ""] = kept_count, ""
    others = rows.filter(pc.invert(is_kept))
    columns = (others[name].to_pylist() for name in ("fate", "error", "rows", "position"))
    for outcome, error, some, position, path in zip(*columns, paths_of(others).to_pylist(), strict=True):
        kind = outcome, re.sub(r"0x[0-9a-f]+|\d+", "#", error)
        counts[kind] += some
        example = f"{error} ({path}" + (f":{position})" if position else ")")
        examples[kind] = min(examples.get(kind, example), example)
    for kind in sorted(counts, key=lambda kind: (-counts[kind], kind))[_MAX_KINDS:]:
        other = kind[0], OTHER_ERRORS
        counts[other] += counts.pop(kind)
        example = examples.pop(kind)
        examples[other] = min(examples.get(other, example), example)
    notes = Notes()
    for note in rows["notes"].drop_null().to_pylist():
        notes.update(json.loads(note))
    records = [
        {"fate": kind[0], "kind": kind[1], "example": examples[kind], "rows": count} for kind, count in counts.items()
    ]
    records += [{"fate": NOTED, "kind": note, "example": "", "rows": count} for note, count in notes.items()]
    fields = {"fate": pa.string(), "kind": pa.string(), "example": pa.string(), "rows": pa.int64()}
    return pa.Table.from_pylist(records, pa.schema(fields))


class Kept(NamedTuple):
    """A kept row: its split's number, its digest, its parsed content, and the number of rows it stands for.

    `at` is its index among the kept rows of the table. `times` is the number of copies that are stored; it follows
    from the weight, in the training split.
    """

    split: int
    digest: bytes
    row: Row
    rows: int
    at: int
    times: int = 1


def kept_rows(rows: pa.Table, task: TaskSpec, keep: tuple[str, ...] = ()) -> Iterator[Kept]:
    """The kept rows, with the columns to `keep`."""
    rows = rows.filter(pc.equal(rows["fate"], KEPT))
    weights, inputs = rows["weight"].to_numpy(), rows["inputs"].to_numpy()
    times = iter((np.floor(weights) + (fraction(inputs) < weights % 1)).clip(min=1).astype(int).tolist())
    names = ["key", "digest", "rows", "shape", "payload"]
    numbers = count()
    for batch in rows.select(names).to_batches(_SLICE_ROWS):
        columns = (batch[name].to_pylist() for name in names)
        for key, digest, some, shape, payload, copies in zip(*columns, times, strict=False):
            raw = raw_of(shape, payload)
            row = task.parse_row(raw)
            if row is None:
                raise InvalidError(
                    "inconsistent_task",
                    "a row that was not empty is empty now; parse_row() of the task must depend on the row alone",
                )
            if keep:
                row = {**row, KEEP: kept(raw, keep)}
            split = key >> SPLIT_BITS
            yield Kept(split, digest, row, some, next(numbers), copies if split == 0 else 1)
