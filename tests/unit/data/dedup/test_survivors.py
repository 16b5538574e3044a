"""One of several duplicates survives: which one depends on content and on the splits alone."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from maas_ray.data.dedup.survivors import KEYS, duplicate_keys, linked, survival_rank, survivors_of
from maas_ray.data.pipeline.index import OLD
from maas_ray.data.splits.hashing import sort_key

DIGESTS = [bytes([number]) * 32 for number in range(0, 250, 10)]


def rows_of(rows: list[tuple[int, int, bytes, list[int]]]) -> pa.Table:
    """The columns that `duplicate_keys` needs, from number, split, digest and bands of each row."""
    return pa.table(
        {
            "row": [row for row, *_ in rows],
            "key": pa.array([sort_key(split, digest) for _, split, digest, _ in rows], pa.int64()),
            "digest": pa.array([digest for _, _, digest, _ in rows], pa.binary(32)),
            "exact": pa.array([row for row, *_ in rows], pa.int64()),
            "bands": [np.array(bands, np.uint64).tobytes() for *_, bands in rows],
            "fate": [""] * len(rows),
        }
    )


def decided(
    rows: list[tuple[int, int, bytes, list[int]]], given: bool = False, cuts: int = 1
) -> dict[int, tuple[int, bool]]:
    """The survivor of each dropped row, and whether the content of both is the same."""
    keys = duplicate_keys(rows_of(rows), given).sort_by("key")
    ends = np.linspace(-(2**63), 2**63 - 1, cuts + 1)
    column = keys["key"].to_numpy().astype(float)
    pieces = [keys.filter(pa.array((column >= low) & (column < high))) for low, high in pairwise(ends)]
    assert sum(map(len, pieces)) == len(keys)
    decisions = survivors_of(linked(piece) for piece in pieces)
    assert set(decisions.survivors.tolist()) == set(decisions.likes.tolist())
    return {
        int(row): (int(like), bool(exact))
        for row, like, exact in zip(decisions.rows, decisions.likes, decisions.exact, strict=True)
    }


@pytest.mark.parametrize("cuts", [1, 4])
def test_a_chain_of_duplicates_is_one_component_in_any_ranges_of_keys(cuts: int) -> None:
    # 1 ~ 2 by one band, 2 ~ 3 by another, 3 = 4 by content; 5 has no duplicate.
    same = DIGESTS[3]
    rows = [
        (1, 0, DIGESTS[1], [11, 1 << 62]),
        (2, 0, DIGESTS[2], [11, (1 << 63) + 5]),
        (3, 0, same, [12, (1 << 63) + 5]),
        (4, 0, same, [13, (1 << 63) + 9]),
        (5, 0, DIGESTS[5], [99]),
    ]
    assert decided(rows, cuts=cuts) == {2: (1, False), 3: (1, False), 4: (1, True)}


def test_the_row_to_evaluate_with_survives_if_splits_are_given() -> None:
    rows = [(1, 0, DIGESTS[1], [7]), (2, 2, DIGESTS[2], [7]), (3, 1, DIGESTS[0], [7])]
    assert decided(rows, given=True) == {1: (2, False), 3: (2, False)}
    assert decided(rows) == {1: (3, False), 2: (3, False)}


def test_rows_without_duplicates_survive() -> None:
    assert decided([(number, 0, digest, [number]) for number, digest in enumerate(DIGESTS)]) == {}
    assert len(survivors_of([linked(KEYS.empty_table())]).rows) == 0


def test_ranks_follow_the_content_and_not_the_numbers_of_rows() -> None:
    keys = np.array([sort_key(0, digest) for digest in reversed(DIGESTS)])
    ranks = survival_rank(keys, np.zeros(len(keys), np.int64), given=False)
    assert np.array_equal(np.argsort(ranks), np.arange(len(keys))[::-1])


def test_old_rows_survive_each_other_and_every_new_row() -> None:
    """A new row is like two old ones, which share a key: the new row is dropped, and both old rows stay."""
    keys = pa.table(
        {
            "key": [7, 7, 7],
            "more": [0, 0, 0],
            "row": [1, 2, 9],
            "rank": [1 - OLD, 2 - OLD, 0],
            "exact": [False, False, False],
        },
        schema=KEYS,
    )
    assert sorted(zip(*(linked(keys)[name].to_pylist() for name in ("row", "other")), strict=True)) == [(9, 1)]
    decisions = survivors_of([linked(keys)])
    assert (decisions.rows.tolist(), decisions.likes.tolist()) == ([9], [1])
