"""Rows in the order of their content, which only their keys are sorted for."""

import random

import numpy as np
import pyarrow as pa
import pytest

from maas_ray.data.dedup.survivors import EXACT_KEYS, exact_duplicates
from maas_ray.data.pipeline import ordering
from maas_ray.data.pipeline.blocks import _cut
from maas_ray.data.pipeline.ordering import ENTRIES, Lookup, ends_of_rows, starts_of, training_rows
from maas_ray.data.pipeline.rows import ROWS, Packer, sealed, unsealed
from maas_ray.data.splits.hashing import SPLIT_BITS, sort_key
from tests.unit.data.pipeline.test_packing import without_a_cluster


def rows_of(count: int, seed: int = 0) -> pa.Table:
    """Rows of three splits with random digests; every tenth is dropped."""
    draw, packer = random.Random(seed), Packer()
    records = []
    for number in range(count):
        digest, (shape, payload) = draw.randbytes(32), packer.row({"text": "word " * draw.randrange(20)})
        fate = "" if number % 10 else "empty"
        record = {"row": number, "digest": digest, "key": sort_key(draw.choice([0, 0, 0, 1, 2]), digest), "fate": fate}
        record |= {"file": f"{number % 3}.csv", "weight": 1.0, "exact": 0, "rows": 1, "shape": shape}
        records.append(record | {"payload": payload})
    return pa.table({name: [record.get(name) for record in records] for name in ROWS.names}, schema=ROWS)


def test_sealed_rows_are_the_same_rows_and_smaller() -> None:
    rows = rows_of(500)
    block = pa.concat_tables([sealed(rows[:300]), sealed(rows[300:])])

    assert pa.concat_tables(unsealed(block)).to_pylist() == rows.to_pylist()
    (first, _) = unsealed(block, ["row", "file"])
    assert first.to_pylist() == rows.select(["row", "file"])[:300].to_pylist()
    assert block.nbytes < rows.nbytes / 2


@pytest.mark.parametrize("range_bytes", [1 << 20, 2000])
def test_training_rows_come_in_order_from_any_number_of_ranges(
    range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "RANGE_BYTES", range_bytes)
    rows = rows_of(1000)
    blocks = [sealed(rows[start : start + 90]) for start in range(0, 1000, 90)]
    with without_a_cluster():
        tables = list(training_rows(blocks))

    assert (len(tables) > 3) is (range_bytes == 2000)
    wanted = [row for row in rows.to_pylist() if not row["fate"] and row["key"] >> SPLIT_BITS == 0]
    assert pa.concat_tables(tables).to_pylist() == sorted(wanted, key=lambda row: row["digest"])


def entries_of(lengths: list[int], seed: int) -> pa.Table:
    draw = random.Random(seed)
    records = [
        {"key": draw.randrange(3) << SPLIT_BITS | draw.randrange(20), "more": 0, "exact": draw.randrange(2)}
        | {"weight": draw.choice([1.0, 2.0]), "row": number, "elements": length}
        for number, length in enumerate(lengths)
    ]
    return pa.Table.from_pylist(records, ENTRIES)


@pytest.mark.parametrize("range_bytes", [1 << 20, 900])
def test_ends_of_rows_are_prefix_sums_in_the_order_of_content(
    range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "RANGE_BYTES", range_bytes)
    lengths = [random.Random(number).randrange(9) for number in range(300)]
    entries = entries_of(lengths, seed=1)
    with without_a_cluster():
        lookup = ends_of_rows([entries[start : start + 50] for start in range(0, 300, 50)], (100, 100, 100), 300)
        parts = [lookup.part(np.arange(start, start + 7)) for start in range(0, 300, 7)]

    assert (len(lookup.ranges) > 1) is (range_bytes == 900)
    order = sorted(entries.to_pylist(), key=lambda e: (e["key"], e["more"], e["exact"], -e["weight"], e["row"]))
    ends = dict(zip((entry["row"] for entry in order), np.cumsum([e["elements"] for e in order]), strict=True))
    for start, part in zip(range(0, 300, 7), parts, strict=True):
        assert part is not None
        found = dict(zip(part["row"].to_pylist(), part["end"].to_pylist(), strict=True))
        assert {row: found[row] for row in range(start, min(300, start + 7))} == {
            row: ends[row] for row in range(start, min(300, start + 7))
        }


def test_copies_of_a_row_follow_each_other() -> None:
    """Row 4 is stored three times, with two elements each; row 9 once, with five, before it."""
    ends = pa.table({"row": [4, 9], "end": [11, 5]})

    starts = starts_of(np.array([9, 4, 4, 4]), np.array([5, 2, 2, 2]), ends)

    assert starts.tolist() == [0, 5, 7, 9]


def test_an_empty_lookup_has_no_part() -> None:
    assert Lookup(np.zeros(0, np.int64), []).part(np.array([1])) is None


def test_every_row_that_has_duplicates_names_the_survivor() -> None:
    columns = {"key": [1, 2, 1, 1, 2], "more": [1, 1, 1, 2, 1], "exact": [5, 1, 4, 0, 1]}
    columns |= {"weight": [1.0, 1.0, 1.0, 1.0, 2.0], "row": [10, 11, 12, 13, 14]}

    found = exact_duplicates(pa.table(columns, schema=EXACT_KEYS)).to_pylist()

    assert {(row["row"], row["like"]) for row in found} == {(10, 12), (12, 12), (11, 14), (14, 14)}


def test_a_small_sort_gives_a_block_for_each_range_that_holds_rows() -> None:
    table = pa.table({"place": [7, 0, 3, 9, 3], "value": [1, 2, 3, 4, 5]})

    blocks = [block.to_pydict() for block in _cut(table, "place", [1, 3, 4, 5, 9])]

    assert [block["place"] for block in blocks] == [[0], [3, 3], [7], [9]]
    assert [block["value"] for block in blocks] == [[2], [3, 5], [1], [4]]
