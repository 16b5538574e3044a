"""The text of a row, and the form in which it is compared."""

import json
import re
import sys
import unicodedata

import numpy as np
import regex  # type: ignore[import-untyped]
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.dedup.normalise import gram_hashes, normalised, text_of, words, words_of


def test_text_of_strings_words_and_chats() -> None:
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]}]
    assert text_of({"anchor": "one", "positive": "two"}, ("anchor", "positive")) == "one\ntwo"
    assert text_of({"text": "one", "label": "no"}, ("text",)) == "one"
    assert text_of({"tokens": ["New", "York"], "tags": ["B", "I"]}, ("tokens",)) == "New York"
    assert text_of({"messages": chat}, ("messages",)) == "Hi.\nHello!"
    assert text_of({"messages": json.dumps(chat)}, ("messages",)) == "Hi.\nHello!"
    assert (
        text_of({"image": b"\x89PNG", "pixels": np.zeros(3), "age": 3, "name": None}, ("image", "pixels", "age")) == ""
    )


def test_normalised_is_one_form_of_the_same_characters() -> None:
    assert normalised("  Ｆｕｌｌ\twidth\u00a0\r\n  ﬁle ") == "full width file"
    assert normalised("cafe\u0301 STRASSE") == normalised("CAFÉ straße")
    assert normalised("a.b") != normalised("a b")


@given(st.text())
def test_normalised_is_its_own_normal_form(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(text.replace(" ", " \t\n")) == once


def test_invisible_characters_are_dropped() -> None:
    """The pattern is Unicode's property, as the `regex` package has it."""
    invisible = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    dropped = {point for point in points if not normalised(f"a{point}b").replace("ab", "")}
    assert dropped == {point for point in points if invisible.match(point)}
    assert words("in\u00adfor\u200bma\u2060tion") == ["information"]


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_runs_of_letters_and_digits(text: str) -> None:
    assert words(text) == re.findall("[a-z0-9]+", text.lower())


def test_words_of_other_scripts() -> None:
    assert words("«Ça_va»—bien…") == ["ça", "va", "bien"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs are no breaks
    assert words("한국어 문장") == ["한국어", "문장"]
    assert words("我爱Python，你呢？") == ["我", "爱", "python", "你", "呢"]
    assert words("カタカナとひらがな") == [*"カタカナとひらがな"]
    assert words("!? …\ud800 \x00") == []


@given(st.text())
def test_words_hold_letters_marks_and_digits_alone(text: str) -> None:
    for word in words(text):
        assert word
        assert {unicodedata.category(character)[0] for character in word} <= {*"LMN"}


@given(st.lists(st.text() | st.text(st.characters(max_codepoint=127), max_size=40), max_size=6))
def test_words_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    hashes, counts = words_of(texts)

    found = [words(text) for text in texts]
    assert counts.tolist() == [len(some) for some in found]
    assert hashes.tolist() == [xxhash.xxh3_64_intdigest(word.encode()) for some in found for word in some]


def plainly(text: str, size: int) -> list[int]:
    """Runs of words, one after the other, in Python's integers."""
    found, whole, runs = words(text), 2**64, []
    found += [""] * (size - len(found)) if found else []
    for start in range(len(found) - size + 1):
        value = 0
        for word in found[start : start + size]:
            value = (value * 0x9E3779B97F4A7C15 + xxhash.xxh3_64_intdigest(word.encode())) % whole
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % whole
        value = (value ^ value >> 27) * 0x94D049BB133111EB % whole
        runs.append(value ^ value >> 31)
    return runs


@given(st.lists(st.text(st.sampled_from("ab é你."), max_size=30), max_size=8), st.integers(1, 6))
def test_grams_of_many_texts_are_those_of_each(texts: list[str], size: int) -> None:
    hashes, counts = gram_hashes(texts, size)
    expected = [plainly(text, size) for text in texts]
    assert counts.tolist() == [len(runs) for runs in expected]
    assert hashes.tolist() == [run for runs in expected for run in runs]


def test_a_short_text_is_one_gram_of_its_own() -> None:
    hashes, counts = gram_hashes(["one two", "one  TWO!", "two one", "one", "..."], 5)
    assert counts.tolist() == [1, 1, 1, 1, 0]
    assert hashes[0] == hashes[1]
    assert len({*hashes.tolist()}) == 3


def test_more_words_than_the_cache_holds_have_the_same_hashes() -> None:
    text = " ".join(map(str, range(200_000)))
    first, _ = gram_hashes([text], 2)
    again, _ = gram_hashes([text, text], 2)
    assert len(np.unique(first)) == 199_999
    assert np.array_equal(np.concatenate([first, first]), again)
