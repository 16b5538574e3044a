"""Rows in the order of their content, without a sort of rows: only keys are sorted, and rows look their places up.

    encoded rows ──keys──▶ sorted by content ──ends──▶ sorted by row number ──Lookup──▶ the encoded rows of a block
    training rows ──those of a range of keys──▶ sorted ──▶ fitting, which reads as many ranges as it needs

Rows of one block have numbers close to each other, so a block fetches one range of a `Lookup` or two, and no process
holds the whole of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from maas_ray.data.pipeline import row_steps
from maas_ray.data.pipeline.blocks import Blocks, Step, records, run, run_over, run_sorted, tables, total_bytes
from maas_ray.data.pipeline.rows import each, unsealed
from maas_ray.data.splits.hashing import SPLIT_BITS

RANGE_BYTES = 8 << 20
"""Size that a range should have. Smaller tables are sorted in the driver, which takes less time than a task."""

ENTRIES = pa.schema(
    {
        "key": pa.int64(),
        "more": pa.int64(),  # the second 64 bits of the digest
        "exact": pa.int64(),
        "weight": pa.float64(),
        "row": pa.int64(),
        "elements": pa.int64(),
    }
)
"""Encoded rows without their values: what orders them, see `SURVIVAL_ORDER`, and the number of their elements."""
_ORDER = [(name, "descending" if name == "weight" else "ascending") for name in ENTRIES.names[:5]]


@dataclass(frozen=True)
class Lookup:
    """A table of numbers with a unique `row` each, in ranges of these.

    Args:
        firsts: the first row's number in each range, int64, ascending.
        ranges: references to the ranges.
    """

    firsts: np.ndarray
    ranges: Blocks

    @classmethod
    def of(cls, blocks: Blocks, highest: int) -> "Lookup":
        """The table in blocks, in any order. The list is emptied.

        Args:
            blocks: the table.
            highest: a number that no row exceeds.
        """
        count = -(-total_bytes(blocks) // RANGE_BYTES)
        boundaries = sorted({highest * number // count for number in range(1, count)})
        ranges = in_ranges(blocks, "row", boundaries, _by_row)
        firsts = [record["row"] for record in records(run(ranges, _first))] if len(ranges) > 1 else [0] * len(ranges)
        return cls(np.array(firsts, np.int64), ranges)

    def part(self, rows: np.ndarray) -> pa.Table | None:
        """The part of the table that holds these rows and others; None if there is none."""
        if not len(rows) or not self.ranges:
            return None
        low, high = np.searchsorted(self.firsts, [rows.min(), rows.max()], side="right").tolist()
        return pa.concat_tables(ray.get(self.ranges[max(low - 1, 0) : max(high, 1)]))


def in_ranges(blocks: Blocks, key: str, boundaries: list[int], step: Step) -> Blocks:
    """Run a step over each range of a column's values. The list is emptied.

    Args:
        blocks: tables, in any order.
        key: the column.
        boundaries: between the ranges. If there are none, the driver runs the step.
        step: gives a table of a range, whose rows are in any order.
    """
    if boundaries:
        return run_sorted(blocks, key, boundaries, step)
    alone = [step(pa.concat_tables(tables(blocks)))] if blocks else []
    blocks.clear()
    return [ray.put(table) for table in alone if len(table)]


def _by_row(table: pa.Table) -> pa.Table:
    return table.sort_by("row")


def _first(block: pa.Table) -> pa.Table:
    return block.select(["row"]).slice(0, 1)


def entries_of(chunks: pa.Table) -> Iterator[pa.Table]:
    """The keys and the number of elements of each row; copies of a row count as one."""
    for content in chunks["entries"]:
        *keys, counts = entries_in(content)
        firsts = _firsts(keys[-1])
        if len(firsts):
            columns = [*(column[firsts] for column in keys), np.add.reduceat(counts, firsts)]
            columns[ENTRIES.names.index("weight")] = columns[ENTRIES.names.index("weight")].view(np.float64)
            yield pa.table(columns, schema=ENTRIES)


def entries_in(content: pa.LargeBinaryScalar) -> np.ndarray:
    """The columns of `ENTRIES`, int64 [columns, rows]."""
    return np.frombuffer(content.as_buffer(), np.int64).reshape(len(ENTRIES), -1)


def _firsts(numbers: np.ndarray) -> np.ndarray:
    """Indices of the first of each run of equal numbers."""
    return np.flatnonzero(np.diff(numbers, prepend=-1))


def ends_of_rows(entries: Blocks, rows: tuple[int, ...], highest: int) -> Lookup:
    """The end of each row in the sequence of all elements, in the order of content: splits follow each other.

    Args:
        entries: tables of `ENTRIES`. The list is emptied.
        rows: number of rows in each split, approximately.
        highest: a number that no row exceeds.
    """
    count = max(1, -(-total_bytes(entries) // RANGE_BYTES))
    boundaries = row_steps.key_ranges([some / max(1, sum(rows)) for some in rows], count) if count > 1 else []
    ranges = in_ranges(entries, "key", boundaries, ended)
    totals = list(records(run(ranges, _total))) if len(ranges) > 1 else []
    before = np.cumsum([0, *(total["end"] for total in totals)])
    bases = {total["row"]: int(base) for total, base in zip(totals, before, strict=False)}
    return Lookup.of(run_over(ranges, partial(_moved, bases=bases)) if totals else ranges, highest)


def ended(entries: pa.Table) -> pa.Table:
    """The end of each row within a range of keys."""
    entries = entries.take(pc.sort_indices(entries, sort_keys=_ORDER))
    return pa.table({"row": entries["row"], "end": pc.cumulative_sum(entries["elements"])})


def _total(ends: pa.Table) -> pa.Table:
    """The first row of a range, which names it, and the elements of the range."""
    return pa.table({"row": ends["row"].slice(0, 1), "end": ends["end"].slice(len(ends) - 1)})


def _moved(ends: pa.Table, bases: dict[int, int]) -> pa.Table:
    return ends.set_column(1, "end", pc.add(ends["end"], bases[ends["row"][0].as_py()]))


def starts_of(rows: np.ndarray, counts: np.ndarray, ends: pa.Table) -> np.ndarray:
    """The position of each row's first element among all elements. Copies of a row follow each other.

    Args:
        rows: the numbers of the rows.
        counts: their numbers of elements.
        ends: the end of the last copy of each row.
    """
    last = np.append(_firsts(rows)[1:], len(rows)) - 1
    local = np.cumsum(counts)
    copy = np.searchsorted(last, np.arange(len(rows)))
    end = ends["end"].to_numpy()[np.searchsorted(ends["row"].to_numpy(), rows)]
    starts: np.ndarray = end - (local[last][copy] - local) - counts
    return starts


def training_rows(blocks: Blocks) -> Iterator[pa.Table]:
    """The kept rows of the training split in the order of their content.

    Each range of keys is twice as large as the one before. So a reader of few rows costs one pass over the blocks, and
    a reader of all of them some passes more.

    Args:
        blocks: sealed rows.
    """
    total = total_bytes(blocks)
    if total <= RANGE_BYTES:
        some = [row_steps.training(rows) for rows in _all(blocks)]
        yield from [row_steps.in_order(pa.concat_tables(some))] if some else []
        return
    low, size = 0.0, RANGE_BYTES / total
    while low < 1:
        high = min(1.0, low + size)
        first, last = (int(share * (1 << SPLIT_BITS)) for share in (low, high))
        chosen = run(blocks, partial(each, step=partial(_between, first=first, last=last)))
        count = math.ceil((high - low) * total / RANGE_BYTES)
        boundaries = [first + (last - first) * number // count for number in range(1, count)]
        yield from tables(in_ranges(chosen, "key", boundaries, row_steps.in_order))
        low, size = high, 2 * size


def _all(blocks: Blocks) -> Iterator[pa.Table]:
    for block in tables(blocks):
        yield from unsealed(block)


def _between(rows: pa.Table, first: int, last: int) -> pa.Table:
    chosen = row_steps.training(rows)
    keys = chosen["key"].to_numpy()
    return chosen.filter(pa.array((keys >= first) & (keys < last)))
