"""The rules of Gopher: repetition and quality."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.cleaning.gopher import GopherQuality, GopherRepetition
from maas_ray.errors import SpecError
from tests.support.cleaning import CHINESE, ENGLISH, GERMAN, fate
from tests.support.errors import raises

PROSE = " ".join(
    f"In chapter{n} of the book we have to be with people that know{n} and things{n} happen." for n in range(20)
)


def lines(count: int, *more: str) -> str:
    return "\n".join([*(f"line number {n} says another thing {n * n}" for n in range(count)), *more])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENGLISH, None),
        (GERMAN, None),
        (CHINESE, None),
        ("", None),
        (lines(6, *["again"] * 5), "duplicate lines"),
        (
            lines(7, *["a line that is rather longer than the other lines of this text are, by far"] * 3),
            "characters in duplicate lines",
        ),
        ("\n\n".join([*map(str, range(6)), *"aaaaa"]), "duplicate paragraphs"),
        (lines(1) + " spam eggs" * 12, "top 2-gram"),
        (" ".join(f"word{n % 150}" for n in range(300)), "duplicate 5-grams"),
    ],
)
def test_repetitive_texts_are_dropped(text: str, reason: str | None) -> None:
    assert fate(GopherRepetition(), text) == reason


def test_rules_of_repetition_can_be_disabled() -> None:
    text = "spam eggs " * 50
    off = {"max_top_ngram": {}, "max_duplicate_ngrams": {5: 1.0}}

    assert fate(GopherRepetition(), text) == "top 2-gram"
    assert fate(GopherRepetition(**off), text) is None
    assert fate(GopherRepetition(**off | {"max_duplicate_ngrams": {3: 0.7}}), text) == "duplicate 3-grams"
    with raises(SpecError, "less_than_equal", "max_top_ngram", 20):
        GopherRepetition.parse({"max_top_ngram": {2: 20}})


def naive_duplicates(words: list[str], size: int) -> int:
    """As datatrove counts them, on tuples of words."""
    seen, total, place = set(), 0, 0
    while place <= len(words) - size:
        ngram = tuple(words[place : place + size])
        if ngram in seen:
            total, place = total + sum(map(len, ngram)), place + size
        else:
            seen.add(ngram)
            place += 1
    return total


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=1, max_size=60), st.integers(2, 6))
def test_ngrams_are_counted_as_by_a_naive_count(words: list[str], size: int) -> None:
    share = naive_duplicates(words, size) / len(" ".join(words))
    off = {"max_top_ngram": {}, "max_duplicate_lines": 1, "max_duplicate_paragraphs": 1}

    for most, reason in ((share, None), (share - 1e-9, f"duplicate {size}-grams")):
        if 0 <= most < 1:
            assert fate(GopherRepetition(**off, max_duplicate_ngrams={size: most}), " ".join(words)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("", "too few words"),
        (ENGLISH, "too few words"),
        ("a " * 60, "words are too short"),
        ("internationalisation " * 60, "words are too long"),
        (PROSE + " #hash" * 80, "too many hash signs"),
        (PROSE + " well..." * 80, "too many ellipses"),
        ("\n".join(f"- {part}." for part in PROSE.split(". ")), "too many bullet points"),
        (
            "\n".join(f"{part} and so on for many words..." for part in PROSE.split(". ")),
            "too many lines that end with an ellipsis",
        ),
        (PROSE + " 1234 5678" * 60, "too few words with letters"),
        (" ".join([GERMAN] * 4), "too few stop words"),
    ],
)
def test_texts_of_low_quality_are_dropped(text: str, reason: str | None) -> None:
    assert fate(GopherQuality(), text) == reason


def test_stop_words_can_be_those_of_another_language() -> None:
    step = GopherQuality(stop_words=("der", "und", "die", "mit", "es"))

    assert fate(step, " ".join([GERMAN] * 4)) is None
