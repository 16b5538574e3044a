"""Steps that look at text: what they repair, what they drop, and in which script."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_ray.data.cleaning import Dropped, Notes, clean_row
from maas_ray.data.cleaning.c4 import C4Quality
from maas_ray.data.cleaning.characters import Characters
from maas_ray.data.cleaning.fix_text import FixText
from maas_ray.data.cleaning.gopher import GopherQuality
from maas_ray.data.cleaning.language import Language
from maas_ray.data.cleaning.length import Length
from maas_ray.errors import InvalidError, SpecError
from maas_ray.tasks.rows import REST
from tests.support.cleaning import ARABIC, CHINESE, ENGLISH, GERMAN, fate
from tests.support.errors import raises

# --- which texts -----------------------------------------------------------------------------------


def test_filters_check_the_tasks_texts_and_not_classes_or_files() -> None:
    row = {"text": "one two three", "label": "a", "image": b"\xff", "keep/site": "b", REST: {"c": "d"}}
    step = Length(min_words=3)

    assert step.clean(row, Notes()) is row
    with pytest.raises(Dropped):
        Length(min_words=3, columns=("c",)).clean(row, Notes())
    with raises(InvalidError, "no_text", "`columns`", "(image, label)"):
        step.clean({"image": b"\xff", "label": "a"}, Notes())
    with raises(InvalidError, "not_text", "'n'", "int"):
        Length(min_words=3, columns=("n",)).clean({"n": 3}, Notes())


def test_a_missing_text_is_left_to_the_task() -> None:
    row = {"text": None}

    assert clean_row([Length(min_words=3), FixText(), GopherQuality()], row, Notes()) == row


def test_a_chat_is_one_text_to_filters_and_several_to_mappers() -> None:
    chat = [
        {"role": "user", "content": "GrÃ¼ÃŸe"},
        {"role": "assistant", "content": [{"type": "text", "text": "zurÃ¼ck"}], "n": 1},
    ]
    row = {"messages": chat}

    fixed = FixText().clean(row, Notes())["messages"]
    assert [fixed[0]["content"], fixed[1]["content"][0]["text"]] == ["Grüße", "zurück"]
    assert chat[0]["content"] == "GrÃ¼ÃŸe"
    assert fixed[1]["n"] == 1
    assert Length(min_words=2, max_words=2).clean(row, Notes()) is row
    with raises(InvalidError, "not_a_document", "'messages'", "list"):
        C4Quality().clean(row, Notes())


def test_the_number_of_tokens_and_their_tags_do_not_change() -> None:
    row = {"tokens": ["GrÃ¼ÃŸe", "a"], "tags": ["Ã¼", "O"]}

    assert FixText().clean(row, Notes()) == {"tokens": ["Grüße", "a"], "tags": ["Ã¼", "O"]}
    assert Length(min_words=2, max_words=2).clean(row, Notes()) is row


def test_the_error_for_bytes_that_are_not_utf8_names_the_fix() -> None:
    with raises(InvalidError, "not_utf8", "0xfc at 2", "`fix_text`"):
        Length(min_words=1).clean({"text": b"Gr\xfc\xdfe"}, Notes())
    assert fate(Length(max_characters=5), "Grüße".encode()) is None
    assert fate(Length(max_characters=5), b"\xef\xbb\xbf" + "Grüße".encode()) is None


# --- fix_text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("sÃ¼ÃŸ", "süß"),
        ("â€œquotedâ€\x9d", "“quoted”"),
        ("ä½\xa0å¥½", "你好"),
        ("e\u0301te\u0301", "été"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b\x07c\x1b[31md", "abcd"),
        ("\ufeffa", "a"),
        ("&amp; “ﬁ” １２", "&amp; “ﬁ” １２"),
        (GERMAN, GERMAN),
        (CHINESE, CHINESE),
        (ARABIC, ARABIC),
        ("def f(x):\n\treturn {x: 1}\n", "def f(x):\n\treturn {x: 1}\n"),
        ("", ""),
    ],
)
def test_mojibake_and_invisible_differences_are_repaired(broken: str, whole: str) -> None:
    notes = Notes()

    assert FixText().clean({"text": broken}, notes) == {"text": whole}
    assert notes == ({"changed": 1} if broken != whole else {})


@pytest.mark.parametrize(
    ("encoding", "said", "text"),
    [
        ("utf-8", None, GERMAN),
        ("utf-16", "utf-16", CHINESE),
        ("utf-32", "utf-32", ARABIC),
        ("utf-16-le", "utf-16-le", GERMAN),
        ("utf-16-be", "utf-16-be", ENGLISH),
        ("cp1252", "windows-1252", "„Grüße“ – €"),
        ("latin-1", "windows-1252", GERMAN),
        ("mac-roman", "macroman", "Grüße\rzurück"),
    ],
)
def test_files_in_other_encodings_are_decoded(encoding: str, said: str | None, text: str) -> None:
    notes = Notes()
    row = FixText().clean({"text": text.encode(encoding)}, notes)

    assert row == {"text": text.encode() if said is None else text.replace("\r", "\n")}
    assert notes == ({f"decoded from {said}": 1, "changed": 1} if said else {})


def test_encodings_are_tried_in_order() -> None:
    step = FixText(encodings=("utf-8", "gb18030"), guess=False)

    assert step.clean({"text": CHINESE.encode("gb18030")}, Notes()) == {"text": CHINESE}
    with raises(InvalidError, "unknown_encoding", "utf-8, gb18030", "`guess: true`"):
        step.clean({"text": b"\xff"}, Notes())
    with raises(SpecError, "unknown_encoding", "encodings", "'utf-9'"):
        FixText.parse({"encodings": ["utf-9"]})


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x1f\x8b\x08\0abc", b"\xff\xfe\0"])
def test_binary_files_are_not_decoded_as_text(content: bytes) -> None:
    with raises(InvalidError, "not_text"):
        FixText().clean({"text": content}, Notes())


def test_files_without_changes_stay_bytes() -> None:
    row = {"text": "Grüße\n".encode()}

    assert FixText().clean(row, Notes()) is row


PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["Ã¼", "Ã", "\x00", "©", "â€", "\x9d", "\r", "\n", "e\u0301", "\ufeff", "&amp;", "\x1b["]),
)


@given(st.lists(PIECES, max_size=8).map("".join), st.sampled_from(["NFC", "NFKC", "NFD", None]), st.booleans())
def test_repaired_text_does_not_change_again(text: str, form: Any, html: bool) -> None:
    step = FixText(normalization=form, unescape_html=html)
    once = step.clean({"text": text}, Notes())

    assert step.clean(once, Notes()) is once


@given(st.binary(max_size=200))
def test_any_bytes_become_text_or_an_error(content: bytes) -> None:
    try:
        row = FixText().clean({"text": content}, Notes())
    except ValueError:
        return
    assert FixText().clean(row, Notes()) == row


# --- length, characters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"min_characters": 3}, "äö", "too few characters"),
        ({"min_characters": 3}, "你好吗", None),
        ({"max_characters": 3}, "abcd", "too many characters"),
        ({"min_words": 2}, "one\n", "too few words"),
        ({"max_words": 2}, "one two three", "too many words"),
        ({"min_characters": 1}, "", "too few characters"),
    ],
)
def test_texts_are_dropped_by_length(fields: dict[str, Any], text: str, reason: str | None) -> None:
    assert fate(Length(**fields), text) == reason
    assert fate(Length(**fields), text.encode()) == reason


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"alphabetic": (0.7, 1)}, ENGLISH, None),
        ({"alphabetic": (0.7, 1)}, GERMAN, None),
        ({"alphabetic": (0.7, 1)}, CHINESE, None),
        ({"alphabetic": (0.7, 1)}, ARABIC, None),
        ({"alphabetic": (0.7, 1)}, "नमस्ते दुनिया", None),
        ({"alphabetic": (0.7, 1)}, "1234 5678", "too few alphabetic"),
        ({"digits": (0, 0.2)}, "call 0800 1234", "too many digits"),
        ({"digits": (0, 0.2)}, "٠١٢٣", "too many digits"),
        ({"symbols": (0, 0.3)}, "{};;()==+", "too many symbols"),
        ({"whitespace": (0.05, 0.4)}, "a\u3000 \t b", "too many whitespace"),
        ({"whitespace": (0.05, 0.4)}, "a" * 30, "too few whitespace"),
        ({"uppercase": (0, 0.5)}, "BUY 123 NOW!!!", "too many uppercase"),
        ({"uppercase": (0, 0.5)}, "12 !!", None),
        ({"non_ascii": (0, 0)}, "naïve", "too many non_ascii"),
        ({"non_ascii": (0, 0)}, "", None),
        ({"symbols": (0, 0)}, "\ud800", None),
    ],
)
def test_texts_are_dropped_by_shares_of_characters(fields: dict[str, Any], text: str, reason: str | None) -> None:
    assert fate(Characters(**fields), text) == reason


@pytest.mark.parametrize(
    ("step", "fields", "code", "values"),
    [
        (Length, {}, "no_limit", ["min_characters"]),
        (Length, {"min_words": 3, "max_words": 2}, "bounds_crossed", ["min_words (3)", "max_words (2)"]),
        (Characters, {}, "no_limit", ["alphabetic"]),
        (Characters, {"digits": [0.5, 0.1]}, "bounds_crossed", ["digits: [0.5, 0.1]"]),
        (Characters, {"digits": [0, 10]}, "less_than_equal", ["digits"]),
        (Language, {"languages": ["xx"]}, "unknown_language", ["languages", "'xx'", "ace, af, "]),
        (GopherQuality, {"min_words": 9, "max_words": 8}, "bounds_crossed", ["min_words (9)", "max_words (8)"]),
        (GopherQuality, {"stop_words": ["the"]}, "bounds_crossed", ["min_stop_words (2)", "stop_words (1)"]),
        (C4Quality, {"bad_words": "nowhere.txt"}, "unreadable_file", ["bad_words: nowhere.txt"]),
    ],
)
def test_a_contradictory_spec_is_refused(step: Any, fields: dict[str, Any], code: str, values: list[str]) -> None:
    with raises(SpecError, code, *values):
        step.parse(fields)


# --- language --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("de", GERMAN), ("zh", CHINESE), ("ar", ARABIC)])
def test_languages_are_told_apart(language: str, text: str) -> None:
    assert fate(Language(languages=(language,)), text) is None
    assert fate(Language(languages=("fi", "sw")), text) == f"language is {language}"
    assert fate(Language(languages=("fi", language)), text.encode()) is None


@pytest.mark.parametrize("text", ["", "1234 5678", "ok"])
def test_text_in_no_language_is_uncertain(text: str) -> None:
    assert fate(Language(languages=("en",), min_probability=0.5), text) == "language is uncertain"


def test_the_middle_of_a_long_text_decides() -> None:
    text = ENGLISH + GERMAN * 100 + ENGLISH

    assert fate(Language(languages=("de",), sample_characters=1000), text) is None
