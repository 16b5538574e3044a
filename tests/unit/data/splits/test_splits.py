"""Splits: by content, by group, by label, as given; and what is decided of rows on the whole."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from maas_ray.data.dedup.verdicts import KEYS, keys_of, linked, ranks, verdicts_of
from maas_ray.data.splits.hashing import sort_key, split_number
from maas_ray.data.splits.spec import Splits, rekeyed, stratified
from maas_ray.errors import SpecError

DIGESTS = [bytes([number]) * 32 for number in range(0, 250, 10)]


def test_content_decides_unless_told_otherwise() -> None:
    splits = Splits(validation=0.3, test=0.2)
    assert [splits.of({}, digest) for digest in DIGESTS] == [split_number(digest, (0.3, 0.2)) for digest in DIGESTS]


def test_rows_of_a_group_lie_together() -> None:
    splits = Splits(validation=0.3, test=0.2, group="site")
    found = {site: {splits.of({"keep/site": site}, digest) for digest in DIGESTS} for site in range(60)}
    assert all(len(one) == 1 for one in found.values())
    assert set.union(*found.values()) == {0, 1, 2}
    assert splits.of({"keep/site": "7"}, DIGESTS[0]) == splits.of({"keep/site": 7}, DIGESTS[1])
    with pytest.raises(ValueError, match="site, by which rows are grouped, is missing"):
        splits.of({"keep/site": None}, DIGESTS[0])


@pytest.mark.parametrize(
    ("said", "number"), [("train", 0), ("Validation", 1), (" dev ", 1), ("val", 1), ("TEST", 2), (b"test", 2)]
)
def test_a_column_names_the_split(said: object, number: int) -> None:
    assert Splits(column="fold").of({"keep/fold": said}, DIGESTS[0]) == number


def test_a_column_that_names_no_split_is_refused() -> None:
    with pytest.raises(ValueError, match="fold names no split: 'holdout'; it may be train, validation, test"):
        Splits(column="fold").of({"keep/fold": "holdout"}, DIGESTS[0])


def test_ways_to_split_exclude_each_other() -> None:
    with pytest.raises(SpecError, match="group and column exclude each other"):
        Splits.parse({"group": "a", "column": "b"})


def test_of_each_label_the_same_share_is_held_out() -> None:
    rng = np.random.default_rng(0)
    strata = np.array([1] * 1000 + [2] * 20)
    inputs = rng.integers(-(2**63), 2**63 - 1, len(strata))
    known, splits = stratified(strata, inputs, (0.1, 0.2))
    of = dict(zip(known.tolist(), splits.tolist(), strict=True))
    for label, count in ((1, 1000), (2, 20)):
        found = np.bincount([of[hashed] for hashed in inputs[strata == label].tolist()], minlength=3)
        assert found.tolist() == [count * 7 // 10, count // 10, count // 5]
    # However the rows come.
    order = rng.permutation(len(strata))
    again = stratified(strata[order], inputs[order], (0.1, 0.2))
    assert np.array_equal(again[0], known)
    assert np.array_equal(again[1], splits)


def test_inputs_with_two_labels_are_in_one_split() -> None:
    strata, inputs = np.array([1, 2] * 50), np.repeat(np.arange(50), 2)
    known, _ = stratified(strata, inputs, (0.5, 0.0))
    assert known.tolist() == list(range(50))


def test_a_key_keeps_its_content_in_another_split() -> None:
    keys = np.array([sort_key(0, digest) for digest in DIGESTS])
    for split in (1, 2):
        expected = [sort_key(split, digest) for digest in DIGESTS]
        assert rekeyed(keys, np.full(len(keys), split, np.int8)).tolist() == expected


def light(rows: list[tuple[int, int, bytes, list[int]]]) -> pa.Table:
    """Rows as `keys_of` takes them: number, split, digest, bands."""
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


def verdicts(
    rows: list[tuple[int, int, bytes, list[int]]], given: bool = False, cuts: int = 1
) -> dict[int, tuple[int, bool]]:
    keys = keys_of(light(rows), given).sort_by("key")
    ends = np.linspace(-(2**63), 2**63 - 1, cuts + 1)
    column = keys["key"].to_numpy().astype(float)
    pieces = [keys.filter(pa.array((column >= low) & (column < high))) for low, high in pairwise(ends)]
    assert sum(map(len, pieces)) == len(keys)
    found = verdicts_of(linked(piece) for piece in pieces)
    assert set(found.representatives.tolist()) == set(found.likes.tolist())
    return {
        int(row): (int(like), bool(exact))
        for row, like, exact in zip(found.rows, found.likes, found.exact, strict=True)
    }


@pytest.mark.parametrize("cuts", [1, 4])
def test_a_chain_is_one_component_whichever_ranges_its_links_lie_in(cuts: int) -> None:
    # 1 ~ 2 by one band, 2 ~ 3 by another, 3 = 4 by content; 5 is alone.
    same = DIGESTS[3]
    rows = [
        (1, 0, DIGESTS[1], [11, 1 << 62]),
        (2, 0, DIGESTS[2], [11, (1 << 63) + 5]),
        (3, 0, same, [12, (1 << 63) + 5]),
        (4, 0, same, [13, (1 << 63) + 9]),
        (5, 0, DIGESTS[5], [99]),
    ]
    assert verdicts(rows, cuts=cuts) == {2: (1, False), 3: (1, False), 4: (1, True)}


def test_where_splits_are_given_the_row_to_evaluate_with_is_kept() -> None:
    rows = [(1, 0, DIGESTS[1], [7]), (2, 2, DIGESTS[2], [7]), (3, 1, DIGESTS[0], [7])]
    assert verdicts(rows, given=True) == {1: (2, False), 3: (2, False)}
    assert verdicts(rows) == {1: (3, False), 2: (3, False)}


def test_rows_that_are_alike_nowhere_leave_nothing() -> None:
    assert verdicts([(number, 0, digest, [number]) for number, digest in enumerate(DIGESTS)]) == {}
    assert len(verdicts_of([linked(KEYS.empty_table())]).rows) == 0


def test_ranks_follow_content_and_not_numbers() -> None:
    keys = np.array([sort_key(0, digest) for digest in reversed(DIGESTS)])
    found = ranks(keys, np.zeros(len(keys), np.int64), given=False)
    assert np.array_equal(np.argsort(found), np.arange(len(keys))[::-1])
