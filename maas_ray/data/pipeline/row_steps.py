"""Steps over rows that were read: order them by content, drop duplicates, clean them further, and count outcomes.

Each function takes one Arrow block. No result depends on how rows are cut into blocks, and every row stays a row to the
end, so that the counts add up. `read_rows` comes before; `global_steps` runs the steps that need all rows.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
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
    NO_SPLIT,
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
from maas_ray.errors import InvalidError
from maas_ray.tasks import Row, TaskSpec
from maas_ray.tasks.fitting import Totals

NOTED = "noted"
"""`fate` of the records in a tally that count changes by cleaning instead of rows."""
OTHER_ERRORS = "other errors"
"""The kind of errors beyond the most common ones."""
_SLICE_ROWS = 1 << 10
_MAX_KINDS = 200


def split_counts(rows: pa.Table) -> pa.Table:
    """The number of rows in each split, and of rows without one."""
    return pa.table({"rows": np.bincount(rows["key"].to_numpy() >> SPLIT_BITS, minlength=NO_SPLIT + 1)})


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


def settle(rows: pa.Table, exact: bool = True) -> pa.Table:
    """Order a range of keys; mark rows that duplicate an earlier row, and rows that are dropped by their weight.

    Args:
        rows: all rows of a range of keys.
        exact: whether a row with the content of an earlier row is a duplicate.
    """
    order = rows.select([name for name, _ in SURVIVAL_ORDER])
    rows = rows.take(pc.sort_indices(order, sort_keys=list(SURVIVAL_ORDER)))
    digests, outcomes, likes, numbers = (rows[name].to_pylist() for name in ("digest", "fate", "like", "row"))
    survivor: int | None = None
    for index in range(len(digests)):
        if outcomes[index] != KEPT:
            continue
        if exact and survivor is not None and digests[index] == digests[survivor]:
            outcomes[index], likes[index], likes[survivor] = DUPLICATE, numbers[survivor], numbers[survivor]
        else:
            survivor = index
    training = (rows["key"].to_numpy() >> SPLIT_BITS) == 0
    sampled_out = training & (fraction(rows["inputs"].to_numpy()) >= rows["weight"].to_numpy())
    for index in np.flatnonzero(sampled_out).tolist():
        outcomes[index] = SAMPLED_OUT if outcomes[index] == KEPT else outcomes[index]
    return marked(rows, outcomes, likes)


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


def apply_decisions(rows: pa.Table, decisions: Decisions) -> pa.Table:
    """Mark duplicates as decided over all rows, and move rows whose split was open into their split."""
    numbers, outcomes, likes = rows["row"].to_numpy(), rows["fate"].to_pylist(), rows["like"].to_pylist()
    for index, at in _matches(numbers, decisions.rows):
        outcomes[index] = DUPLICATE if decisions.exact[at] else NEAR_DUPLICATE
        likes[index] = int(decisions.likes[at])
    for index, at in _matches(numbers, decisions.survivors):
        likes[index] = int(decisions.survivors[at])
    keys, inputs = rows["key"].to_numpy(), rows["inputs"].to_numpy()
    if decisions.ends is not None:
        splits = decisions.ends.splits(rows["stratum"].fill_null(0).to_numpy(), inputs)
        if len(decisions.inputs):
            indices = np.searchsorted(decisions.inputs, inputs).clip(max=len(decisions.inputs) - 1)
            splits = np.where(decisions.inputs[indices] == inputs, decisions.splits[indices], splits)
        is_open = ((keys >> SPLIT_BITS) == 0) & pc.is_valid(rows["stratum"]).to_numpy()
        keys = np.where(is_open, rekeyed(keys, splits), keys)
    return marked(with_column(rows, "key", keys), outcomes, likes)


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
    if trains(rows):
        yield _summed(totals, raw_rows(rows))


def task_totals(rows: pa.Table, task: TaskSpec, totals: Totals) -> Iterator[pa.Table]:
    """Totals of the training rows of a block, as the task parses them."""
    if trains(rows):
        yield _summed(totals, (kept.row for kept in kept_rows(rows, task)))


def trains(rows: pa.Table) -> bool:
    """True for an ordered block of the training split; no block holds rows of two splits."""
    return len(rows) > 0 and not rows["key"][0].as_py() >> SPLIT_BITS


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
    columns = (rows[name].to_pylist() for name in ("fate", "error", "rows", "position"))
    for outcome, error, count, position, path in zip(*columns, paths_of(rows).to_pylist(), strict=True):
        kind = outcome, re.sub(r"0x[0-9a-f]+|\d+", "#", error)
        counts[kind] += count
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

    `times` is the number of copies that are stored. It follows from the weight, in the training split.
    """

    split: int
    digest: bytes
    row: Row
    rows: int
    times: int = 1


def kept_rows(rows: pa.Table, task: TaskSpec, keep: tuple[str, ...] = ()) -> Iterator[Kept]:
    """The kept rows, with the columns to `keep`."""
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
                raise InvalidError(
                    "inconsistent_task",
                    "a row that was not empty is empty now; parse_row() of the task must depend on the row alone",
                )
            if keep:
                row = {**row, KEEP: kept(raw, keep)}
            split = key >> SPLIT_BITS
            yield Kept(split, digest, row, count, copies if split == 0 else 1)
