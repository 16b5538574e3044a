"""Runs of words that training rows share with held-out rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.dedup.decontaminate import Decontaminate, NgramIndex, ngram_hashes
from maas_ray.errors import SpecError
from tests.support.errors import raises

LINE = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want."


def test_a_quotation_is_found_whatever_surrounds_it() -> None:
    index = NgramIndex([ngram_hashes(LINE, 13)])
    assert index.contains(ngram_hashes(f"She read:\n “{LINE.upper()}” and laughed.", 13)) > 0.3
    assert index.contains(ngram_hashes(LINE.replace("fortune", "pension"), 13)) == pytest.approx(3 / 8)
    assert (
        index.contains(ngram_hashes("Of a good fortune, must be in want of a wife, he said to all of them.", 13)) == 0
    )


def test_overlap_is_the_share_of_a_rows_own_distinct_ngrams() -> None:
    index = NgramIndex([ngram_hashes("a b c", 2)])  # a b, b c
    assert index.contains(ngram_hashes("a b c", 2)) == 1
    assert index.contains(ngram_hashes("a b x y", 2)) == pytest.approx(1 / 3)
    assert index.contains(ngram_hashes("a b a b a b", 2)) == pytest.approx(1 / 2)


def test_a_text_shorter_than_an_ngram_matches_only_as_a_whole() -> None:
    index = NgramIndex([ngram_hashes("Great film!", 13)])
    assert index.contains(ngram_hashes("great FILM", 13)) == 1
    assert index.contains(ngram_hashes("great", 13)) == 0
    assert index.contains(ngram_hashes("A great film it was, the best that I have seen in the last ten years", 13)) == 0


def test_nothing_overlaps_with_nothing() -> None:
    empty = NgramIndex([])
    assert len(empty) == 0
    assert empty.contains(ngram_hashes("a b", 2)) == 0
    assert NgramIndex([ngram_hashes("a b", 2)]).contains(ngram_hashes("?!", 2)) == 0


def test_min_overlap_is_the_share_from_which_rows_are_dropped() -> None:
    assert Decontaminate().contaminates(0.001)
    assert not Decontaminate().contaminates(0)
    assert Decontaminate(min_overlap=0.5).contaminates(0.5)
    assert not Decontaminate(min_overlap=0.5).contaminates(0.49)
    with raises(SpecError, "greater_than_equal", "ngram"):
        Decontaminate.parse({"ngram": 0})


@given(st.lists(st.lists(st.integers(0, 50)), max_size=5), st.lists(st.integers(0, 60)))
def test_the_index_is_a_set(given: list[list[int]], asked: list[int]) -> None:
    index = NgramIndex(np.array(some, np.uint64) for some in given)
    known = {value for some in given for value in some}
    assert index.hashes.tolist() == sorted(known)
    expected = sum(value in known for value in asked) / len(asked) if asked else 0
    assert index.contains(np.array(asked, np.uint64)) == pytest.approx(expected)
