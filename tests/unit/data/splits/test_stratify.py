"""Stratified splits: the same share of each label is held out, found over ranges of hashes."""

import numpy as np
import pyarrow as pa
import pytest

from maas_ray.data.splits.stratify import Ends, counted, distinct, ends_of, found, ranks


def ends(strata: np.ndarray, inputs: np.ndarray, shares: tuple[float, ...], ranges: int) -> Ends:
    """The ends of labels over rows that are cut into ranges, as the cluster cuts them."""
    rows = pa.table({"inputs": inputs, "stratum": strata})
    cuts = np.quantile(inputs, np.linspace(0, 1, ranges + 1)[1:-1], method="nearest") if ranges > 1 else []
    at = np.searchsorted(cuts, inputs, side="right")
    parts = [distinct(rows.filter(pa.array(at == number))) for number in range(ranges) if (at == number).any()]
    wanted = ranks(map(counted, parts), shares)
    return ends_of(found(part, wanted) for part in parts)


def stratified(strata: np.ndarray, inputs: np.ndarray, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct inputs, ascending, and the split of each."""
    splits = ends(strata, inputs, shares, 3).splits(strata, inputs)
    known, first = np.unique(inputs, return_index=True)
    assert all(len(set(splits[inputs == value])) == 1 for value in known[:50])
    return known, splits[first]


@pytest.mark.parametrize("ranges", [1, 2, 7])
def test_ends_over_ranges_are_those_of_a_list_of_all_rows(ranges: int) -> None:
    """The reference sorts the distinct inputs of each label and cuts them by their count."""
    rng = np.random.default_rng(ranges)
    for _ in range(40):
        strata = rng.integers(-3, 4, rng.integers(1, 120)) * 10**12
        inputs = rng.integers(-40, 40, len(strata)) * 10**15
        shares = (float(rng.choice([0, 0.1, 0.25, 0.45])), float(rng.choice([0, 0.1, 0.3, 0.5])))
        lowest = {value: int(strata[inputs == value].min()) for value in np.unique(inputs).tolist()}
        expected = dict.fromkeys(lowest, 0)
        for label in set(lowest.values()):
            listed = sorted(value for value, stratum in lowest.items() if stratum == label)
            validation, test = (round(share * len(listed)) for share in shares)
            expected |= dict.fromkeys(listed[:validation], 1)
            expected |= dict.fromkeys(listed[validation : validation + test], 2)
        splits = ends(strata, inputs, shares, ranges).splits(strata, inputs)
        assert splits.tolist() == [expected[value] for value in inputs.tolist()]


def test_a_label_without_rows_is_for_training() -> None:
    held = ends(np.array([5] * 10), np.arange(10), (0.5, 0.5 - 1e-9), 2)
    assert held.splits(np.array([4, 5, 6]), np.array([0, 0, 0])).tolist() == [0, 1, 0]
    nothing = ends_of([])
    assert nothing.splits(np.array([4]), np.array([0])).tolist() == [0]
    assert len(ranks([], (0.1, 0.1))) == 0


def test_stratify_holds_out_the_same_share_of_each_label() -> None:
    rng = np.random.default_rng(0)
    strata = np.array([1] * 1000 + [2] * 20)
    inputs = rng.integers(-(2**63), 2**63 - 1, len(strata))
    distinct, splits = stratified(strata, inputs, (0.1, 0.2))
    of = dict(zip(distinct.tolist(), splits.tolist(), strict=True))
    for label, count in ((1, 1000), (2, 20)):
        counts = np.bincount([of[hashed] for hashed in inputs[strata == label].tolist()], minlength=3)
        assert counts.tolist() == [count * 7 // 10, count // 10, count // 5]
    # The order of the rows does not matter.
    order = rng.permutation(len(strata))
    again = stratified(strata[order], inputs[order], (0.1, 0.2))
    assert np.array_equal(again[0], distinct)
    assert np.array_equal(again[1], splits)


def test_stratify_rounds_a_share_to_the_nearest_input() -> None:
    """A tenth of 17 inputs is 1.7, so 2 are held out; a tenth of 13 is 1.3, so 1 is."""
    strata = np.array([1] * 17 + [2] * 13)
    _, splits = stratified(strata, np.arange(30), (0.1, 0.1))
    for label, held_out in ((1, 2), (2, 1)):
        assert np.bincount(splits[strata == label], minlength=3).tolist()[1:] == [held_out, held_out]


def test_stratify_holds_out_the_inputs_with_the_lowest_hashes() -> None:
    inputs, splits = stratified(np.zeros(10, np.int64), np.arange(10)[::-1].copy(), (0.2, 0.3))
    assert inputs.tolist() == list(range(10))
    assert splits.tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0, 0]


def test_an_input_with_several_labels_counts_for_the_lowest_label() -> None:
    """Inputs 0 to 9 have the labels 2 and 1, and inputs 10 to 19 only 2: half of each ten is held out."""
    strata = np.array([2, 1] * 10 + [2] * 10)
    inputs = np.concatenate([np.repeat(np.arange(10), 2), np.arange(10, 20)])
    distinct, splits = stratified(strata, inputs, (0.5, 0.0))
    assert distinct.tolist() == list(range(20))
    assert np.flatnonzero(splits).tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
