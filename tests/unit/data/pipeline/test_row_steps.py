"""Steps over one block of rows: order, exact duplicates, weights, and decisions over all rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from maas_ray.data.dedup.survivors import Decisions
from maas_ray.data.pipeline.row_steps import OTHER_ERRORS, key_ranges, settled, tally
from maas_ray.data.pipeline.rows import DUPLICATE, KEPT, NEAR_DUPLICATE, QUARANTINED, ROWS, SAMPLED_OUT, Packer
from maas_ray.data.splits.hashing import SPLIT_BITS, sort_key
from maas_ray.data.splits.stratify import Ends
from tests.unit.data.pipeline.test_packing import settle


def block(*rows: dict[str, Any]) -> pa.Table:
    """Rows with their numbers; by default all of the same content, in training."""
    packer = Packer()
    records = []
    for number, row in enumerate(rows):
        digest = row.pop("digest", b"a" * 32)
        shape, payload = packer.row({"text": f"row {number}"})
        record = {
            "row": number,
            "digest": digest,
            "key": sort_key(row.pop("split", 0), digest),
            "exact": 0,
            "inputs": 0,
        }
        records.append(record | {"rows": 1, "weight": 1.0, "fate": KEPT, "shape": shape, "payload": payload} | row)
    return pa.table({name: [record.get(name) for record in records] for name in ROWS.names}, schema=ROWS)


def outcomes(rows: pa.Table) -> dict[int, tuple[str, int | None]]:
    columns = (rows[name].to_pylist() for name in ("row", "fate", "like"))
    return {row: (outcome, like) for row, outcome, like in zip(*columns, strict=True)}


@pytest.mark.parametrize(
    ("rows", "survivor"),
    [
        ([{"exact": 2}, {"exact": 1}, {"exact": 3}], 1),
        ([{"exact": 2, "weight": 9.0}, {"exact": 1}], 1),
        ([{"weight": 1.0}, {"weight": 2.0}, {"weight": 2.0}], 1),
        ([{}, {}, {}], 0),
    ],
)
def test_the_lowest_hash_survives_then_the_heaviest_row_then_the_first(rows: list[Any], survivor: int) -> None:
    found = outcomes(settle(block(*rows)))

    assert found.pop(survivor) == (KEPT, survivor)
    assert set(found.values()) == {(DUPLICATE, survivor)}


def test_equal_rows_stay_if_they_are_not_deduplicated() -> None:
    assert outcomes(settle(block({}, {}), exact=False)) == {0: (KEPT, None), 1: (KEPT, None)}


def test_a_dropped_row_is_not_a_survivor() -> None:
    found = outcomes(settle(block({"exact": 0, "fate": "length: too few words"}, {"exact": 1}, {"exact": 2})))

    assert found == {0: ("length: too few words", None), 1: (KEPT, 1), 2: (DUPLICATE, 1)}


def test_weights_below_one_drop_training_rows_only() -> None:
    digests = [bytes([number]) * 32 for number in range(40)]
    rows = [{"digest": d, "weight": 0.5, "inputs": 7**15 * n, "split": n % 2} for n, d in enumerate(digests)]
    found = outcomes(settle(block(*rows)))

    assert {found[number][0] for number in range(1, 40, 2)} == {KEPT}
    assert {found[number][0] for number in range(0, 40, 2)} == {KEPT, SAMPLED_OUT}


def test_a_row_that_is_dropped_keeps_an_excerpt_only() -> None:
    found = settle(block({}, {}))

    assert found["payload"].to_pylist()[1] == b"row 1"
    assert found["shape"].to_pylist()[1] is None


def test_decisions_over_all_rows_mark_duplicates_and_move_open_rows() -> None:
    rows = block({"stratum": 1, "inputs": 5}, {"stratum": 1, "inputs": 6}, {"inputs": 5}, {"stratum": 1, "inputs": 9})
    decisions = Decisions(
        rows=np.array([1, 3]),
        likes=np.array([0, 0]),
        exact=np.array([True, False]),
        survivors=np.array([0]),
        inputs=np.array([5, 6]),
        splits=np.array([2, 1]),
        ends=Ends(np.array([1]), np.array([[0], [8]]), np.zeros(0, np.int64), np.zeros(0, np.int64)),
    )
    decided = settled(rows, decisions)

    assert outcomes(decided) == {0: (KEPT, 0), 1: (DUPLICATE, 0), 2: (KEPT, None), 3: (NEAR_DUPLICATE, 0)}
    assert (decided["key"].to_numpy() >> SPLIT_BITS).tolist() == [2, 1, 0, 0]


def test_no_range_of_keys_spans_two_splits() -> None:
    boundaries = key_ranges([0.5, 0.25, 0.25, 0.0], 8)

    assert {split << SPLIT_BITS for split in (1, 2, 3)} <= set(boundaries)
    assert boundaries == sorted(boundaries)
    assert len(boundaries) == 4 + 2 + 2 + 1 - 1


def test_a_tally_stays_small_if_each_row_has_an_error_of_its_own() -> None:
    broken = [{"fate": QUARANTINED, "error": f"{'x' * number} is not a number"} for number in range(1000)]
    rare = [{"fate": "language: not in English", "error": ""}]
    common = [{"fate": QUARANTINED, "error": "no header"}] * 3
    rows = block(*(row | {"file": "a.csv", "notes": None} for row in [*broken, *rare, *common, {"error": ""}]))

    records = tally(rows).to_pylist()
    assert len(records) < 300
    outcomes = {
        fate: sum(row["rows"] for row in records if row["fate"] == fate) for fate in {r["fate"] for r in records}
    }
    assert outcomes == {QUARANTINED: 1003, "language: not in English": 1, KEPT: 1}
    assert max(records, key=lambda row: (row["kind"] != OTHER_ERRORS, row["rows"]))["kind"] == "no header"
