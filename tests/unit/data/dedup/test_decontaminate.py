"""Runs of words that training rows share with held-out rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.dedup.decontaminate import Decontaminate, HeldOutRuns, held_out_runs
from maas_ray.data.dedup.normalise import words
from maas_ray.errors import SpecError
from tests.support.errors import raises

LINE = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want."


def overlap(training: str, *held_out: str, ngram: int = 13) -> float:
    return HeldOutRuns((held_out_runs(text, ngram) for text in held_out), ngram).overlap(training)


def test_a_quotation_is_found_whatever_surrounds_it() -> None:
    assert overlap(f"She read:\n “{LINE.upper()}” and laughed.", LINE) > 0.3
    assert overlap(LINE.replace("fortune", "pension"), LINE) == pytest.approx(3 / 8)
    assert overlap("Of a good fortune, must be in want of a wife, he said to all of them.", LINE) == 0


def test_overlap_is_the_share_of_a_rows_own_distinct_ngrams() -> None:
    assert overlap("a b c", "a b c", ngram=2) == 1
    assert overlap("a b x y", "a b c", ngram=2) == pytest.approx(1 / 3)
    assert overlap("a b a b a b", "a b c", ngram=2) == pytest.approx(1 / 2)


@pytest.mark.parametrize("count", range(5, 16))
def test_a_held_out_text_of_five_words_or_more_is_found_within_a_row(count: int) -> None:
    """The row has count + 2 words, and so 3 runs of the text's length; a text of 14 words has two runs of 13."""
    text = " ".join(f"w{number}" for number in range(count))
    runs = count + 2 - min(count, 13) + 1
    assert overlap(f"So: {text}? Yes", text) == pytest.approx((1 + max(0, count - 13)) / runs)
    assert overlap(f"So: {text[:-1]}? Yes", text) == pytest.approx(max(0, count - 13) / runs)
    assert overlap(text, text) == 1


def test_texts_of_every_length_are_searched_for_at_once() -> None:
    question = "What is the capital city of the republic of Burkina Faso?"
    row = f"Trivia for tonight. {question} The answer is Ouagadougou."
    assert overlap(row, LINE, "Name the capital of Peru, please", question, "Great film!") > 0
    assert overlap(row, LINE, "Name the capital of Peru, please", "Great film!") == 0


def test_a_text_of_fewer_than_five_words_matches_only_as_a_whole() -> None:
    assert overlap("great FILM", "Great film!") == 1
    assert overlap("great", "Great film!") == 0
    assert overlap("A great film it was, the best that I have seen in the last ten years", "Great film!") == 0


def test_invisible_characters_hide_nothing() -> None:
    hidden = LINE.replace("universally", "uni\u00adver\u200bsally").replace("possession", "posses\u2060sion")
    assert overlap(f"She read: {hidden}", LINE) == overlap(f"She read: {LINE}", hidden) > 0.5


def test_nothing_overlaps_with_nothing() -> None:
    assert overlap("a b", ngram=2) == 0
    assert overlap("?!", "a b", ngram=2) == 0
    assert overlap("a b", "?!", ngram=2) == 0


def test_min_overlap_is_the_share_from_which_rows_are_dropped() -> None:
    assert Decontaminate().contaminates(0.001)
    assert not Decontaminate().contaminates(0)
    assert Decontaminate(min_overlap=0.5).contaminates(0.5)
    assert not Decontaminate(min_overlap=0.5).contaminates(0.49)
    with raises(SpecError, "greater_than_equal", "ngram"):
        Decontaminate.parse({"ngram": 0})


@given(st.lists(st.text("ab ", max_size=12), max_size=4), st.text("ab ", max_size=20), st.integers(1, 7))
def test_overlap_is_that_of_runs_as_lists_of_words(held_out: list[str], training: str, ngram: int) -> None:
    def runs(text: str, length: int) -> set[tuple[str, ...]]:
        split = words(text)
        return {tuple(split[at : at + length]) for at in range(len(split) - length + 1)} if length else set()

    known: dict[int, set[tuple[str, ...]]] = {}
    for text in held_out:
        length = min(ngram, len(words(text)))
        known.setdefault(length, set()).update(runs(text, length))
    whole = len(words(training))
    own = {length: runs(training, length) for length in known if length >= min(5, ngram) or length == whole}
    shares = [len(some & known[length]) / len(some) for length, some in own.items() if some]
    assert overlap(training, *held_out, ngram=ngram) == pytest.approx(max(shares, default=0))
