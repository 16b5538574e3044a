"""MinHash, its bands, and the components of what they join."""

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.dedup.components import components, edges, representatives
from maas_ray.data.dedup.minhash import NearDuplicates, band_keys, band_keys_of
from maas_ray.errors import SpecError
from tests.support.errors import raises

SPEC = NearDuplicates()


def prose(rng: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in rng.integers(0, 10_000, count)]


def test_keys_do_not_change_between_versions() -> None:
    # A dataset that grows compares the rows of today with those of tomorrow.
    keys = band_keys("The quick brown fox jumps over the lazy dog. Le cœur déçu mais l'âme plutôt naïve.", SPEC)
    assert keys.dtype == np.uint64
    assert len(keys) == SPEC.resolved_bands
    assert keys[:2].tolist() == [10119842747706212109, 6070791720136491133]


def test_punctuation_and_case_do_not_change_keys() -> None:
    one = band_keys("It was the best of times, it was the worst of times", SPEC)
    assert np.array_equal(one, band_keys("it WAS — the best\nof ‘times’; it was (the worst) of ｔｉｍｅｓ!", SPEC))
    assert not np.isin(one, band_keys("it was the age of wisdom it was the age of foolishness", SPEC)).any()


def test_texts_without_words_have_no_keys() -> None:
    assert band_keys("", SPEC).shape == band_keys("?! \ud800", SPEC).shape == (0,)
    places, keys = band_keys_of(["", "a", "—", "b c"], SPEC)
    assert places.tolist() == [1, 3]
    assert keys.shape == (2, SPEC.resolved_bands)
    assert band_keys_of([], SPEC)[1].shape == (0, SPEC.resolved_bands)


def test_short_texts_are_alike_when_their_words_are() -> None:
    assert np.array_equal(band_keys("good film", SPEC), band_keys("Good film!", SPEC))
    assert not np.isin(band_keys("good film", SPEC), band_keys("good food", SPEC)).any()


@given(st.lists(st.text(st.sampled_from("ab é你."), max_size=40), max_size=6))
def test_many_texts_have_the_keys_of_each(texts: list[str]) -> None:
    places, keys = band_keys_of(texts, SPEC)
    alone = [band_keys(text, SPEC) for text in texts]
    assert places.tolist() == [place for place, found in enumerate(alone) if len(found)]
    assert [row.tolist() for row in keys] == [found.tolist() for found in alone if len(found)]


def test_long_texts_among_short_ones_have_the_keys_of_each() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(prose(rng, count)) for count in (10, 70_000, 3, 33_000, 300_000, 5, 40_000)]
    _, keys = band_keys_of(texts, SPEC)
    assert all(np.array_equal(row, band_keys(text, SPEC)) for row, text in zip(keys, texts, strict=True))


@pytest.mark.parametrize("permutations", [64, 128, 256])
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_bands_fit_the_threshold(threshold: float, permutations: int) -> None:
    spec = NearDuplicates(threshold=threshold, permutations=permutations)
    assert permutations / 2 <= spec.resolved_bands * spec.rows_per_band <= permutations
    assert 1 - 1 / np.e <= spec.probability(threshold) <= 0.75
    assert spec.probability(threshold - 0.3) < 0.2 * spec.probability(threshold)


def test_bands_at_extreme_thresholds() -> None:
    same = NearDuplicates(threshold=1)
    assert (same.resolved_bands, same.rows_per_band) == (1, 128)
    low = NearDuplicates(threshold=0.001)
    assert (low.resolved_bands, low.rows_per_band) == (128, 1)
    given = NearDuplicates(permutations=112, bands=14)
    assert (given.resolved_bands, given.rows_per_band) == (14, 8)


def test_more_bands_than_permutations_are_refused() -> None:
    with raises(SpecError, "bounds_crossed", "bands (20)", "permutations (10)"):
        NearDuplicates.parse({"permutations": 10, "bands": 20})


@pytest.mark.parametrize("words", [60, 2000])
@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.9])
def test_pairs_are_found_as_often_as_the_curve_says(similarity: float, words: int) -> None:
    rng = np.random.default_rng(0)
    spec, pairs = NearDuplicates(shingle=1, permutations=112, bands=14), 600 if words < 100 else 150
    # Sets of which so many are in both: `words` in all.
    common = round(words * similarity)
    texts = []
    for _ in range(pairs):
        drawn = [f"w{number}" for number in rng.choice(100_000, words, replace=False)]
        half = (words - common) // 2
        texts += [drawn[: common + half], drawn[:common] + drawn[common + half :]]
    _, keys = band_keys_of(map(" ".join, texts), spec)
    found = (keys[::2] == keys[1::2]).any(1).mean()
    expected = spec.probability(common / words)
    assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / pairs) ** 0.5 + 0.01)


def test_minima_are_as_random_as_the_estimate_of_similarity_needs() -> None:
    # One band a permutation: the share of equal keys estimates the similarity; so does its spread.
    rng = np.random.default_rng(1)
    spec = NearDuplicates(shingle=1, permutations=256, bands=256)
    shares = []
    for _ in range(200):
        drawn = [f"w{number}" for number in rng.choice(100_000, 150, replace=False)]
        _, keys = band_keys_of([" ".join(drawn[:100]), " ".join(drawn[50:])], spec)
        shares.append((keys[0] == keys[1]).mean())
    assert np.mean(shares) == pytest.approx(1 / 3, abs=0.01)
    assert np.std(shares) == pytest.approx((2 / 9 / 256) ** 0.5, rel=0.25)


def joined(pairs: list[tuple[int, int]]) -> dict[int, frozenset[int]]:
    """Components, by union-find as in a textbook."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for one, other in pairs:
        parent[root(one)] = root(other)
    return {one: frozenset(other for other in parent if root(other) == root(one)) for one in parent}


PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40)


@given(PAIRS)
def test_components_are_those_of_union_find(pairs: list[tuple[int, int]]) -> None:
    ids, labels = components(np.array(pairs, np.int64).reshape(-1, 2))
    expected = joined(pairs)
    assert ids.tolist() == sorted(expected)
    found = {int(one): frozenset(ids[labels == label].tolist()) for one, label in zip(ids, labels, strict=True)}
    assert found == expected


@given(PAIRS, st.permutations(range(31)))
def test_the_first_of_a_component_stands_for_it(pairs: list[tuple[int, int]], ranks: list[int]) -> None:
    ids, labels = components(np.array(pairs, np.int64).reshape(-1, 2))
    kept = representatives(ids, labels, np.array(ranks, np.int64)[ids])
    expected = {one: min(others, key=lambda other: ranks[other]) for one, others in joined(pairs).items()}
    assert dict(zip(ids.tolist(), kept.tolist(), strict=True)) == expected


ENTRIES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), max_size=60)


@given(ENTRIES, st.randoms())
def test_edges_are_a_spanning_forest_of_rows_that_share_keys(entries: list[tuple[int, int]], random: Random) -> None:
    ranks = [(7 * row) % 5 for row in range(21)]  # some rows are of one rank

    def forest(entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
        keys = np.array([key for key, _ in entries], np.uint64)
        ids = np.array([row for _, row in entries], np.int64)
        rows, firsts = edges(keys, ids, np.array(ranks, np.int64)[ids])
        return [*zip(rows.tolist(), firsts.tolist(), strict=True)]

    found = forest(entries)
    pairs = [
        (one[1], other[1])
        for one, other in itertools.combinations(entries, 2)
        if one[0] == other[0] and one[1] != other[1]
    ]
    expected = joined(pairs)
    assert joined(found) == expected
    assert len(found) == len(expected) - len({*expected.values()})
    assert all(first == min(expected[row], key=lambda one: (ranks[one], one)) for row, first in found)
    shuffled = [*entries]
    random.shuffle(shuffled)
    assert forest(shuffled) == found


def test_edges_of_parts_join_the_same_rows_as_edges_of_the_whole() -> None:
    # As on a cluster: each range of keys by itself, and the driver joins what they found.
    rng = np.random.default_rng(2)
    keys, ids = rng.integers(0, 3000, 4000, dtype=np.uint64), rng.integers(0, 2000, 4000)

    def kept(pairs: np.ndarray) -> dict[int, int]:
        rows, labels = components(pairs)
        return dict(zip(rows.tolist(), representatives(rows, labels, rows).tolist(), strict=True))

    parts = [keys % np.uint64(7) == part for part in range(7)]
    pieces = [np.column_stack(edges(keys[part], ids[part], ids[part])) for part in parts]
    whole = kept(np.column_stack(edges(keys, ids, ids)))
    assert kept(np.concatenate(pieces)) == whole
    assert len({*whole.values()}) > 50
