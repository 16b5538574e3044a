"""`fastokens` gives the ids of `tokenizers`, which is the reference throughout, or is not used."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, processors, trainers

from maas_ray.tasks import Ragged, load_task
from maas_ray.tasks.task import ACCELERATION_FILE
from maas_ray.tasks.text.fast import encoder
from maas_ray.tasks.text.fast.cases import CASES
from maas_ray.tasks.text.fast.counting import CountingEncoder
from maas_ray.tasks.text.fast.encoder import FastTokenizer, IdEncoder, Proof, encode_ids, installed
from maas_ray.tasks.text.fast.proof import Sample, counts_agree, difference, prove
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from tests.support.tokenizer_families import FAMILIES, PATTERNS, of_pattern, save

BYTE_LEVEL = {"gpt_2", "llama_3", "qwen", "roberta"}
PROVED = Proof(*installed())
WORDS = [
    "it's",
    "IT'S ",
    " the",
    "return",
    "\r\n",
    "    ",
    "\t",
    "\u00a0",
    "\u2028",
    "\u3000",
    "e\u0301",
    "ſ",
    "'",
    "'ſ",
    "123456",
]
WORDS += [
    "<|endoftext|>",
    "<|go|>",
    "<tool>",
    "👩‍👩‍👧‍👦",
    "東京",
    "한글",
    "שלום",
    "हिन्दी",
    "ไทย",
    "٣١",
    "½Ⅷ²",
    "\x00",
    "\x85",
    "ﬁ",
    "Å",
]
CODE = st.lists(st.sampled_from([*WORDS, *"(){}[]<>=+-*/%&|^~!?;:,.#@$_\\\"'`0aZ \n"]), max_size=40).map("".join)
RUNS = st.builds(
    lambda one, count, rest: one * count + rest, st.characters(codec="utf-8"), st.integers(1, 1000), st.text(max_size=5)
)
TEXTS = st.lists(st.text(max_size=60) | CODE | RUNS, max_size=4)


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Added tokens of every kind."""
    tokenizer.add_special_tokens(
        [AddedToken("<|go|>", lstrip=True, normalized=False), AddedToken("<|end|>", rstrip=True)]
    )
    tokenizer.add_tokens(
        [AddedToken("<tool>"), AddedToken("word", single_word=True), AddedToken(" in ", normalized=False)]
    )
    return tokenizer


def with_nfc(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    **{name: lambda name=name: of_pattern(name) for name in PATTERNS},
    "llama_3_pairs": lambda: of_pattern("llama_3", pairs=True),
    "gpt_2_added": lambda: with_added(of_pattern("gpt_2")),
    "gpt_2_prefix": lambda: of_pattern("gpt_2", prefix=True),
    "llama_3_added": lambda: with_added(of_pattern("llama_3")),
    "qwen_nfc": lambda: with_nfc(of_pattern("qwen")),
    "qwen_nfc_added": lambda: with_added(with_nfc(of_pattern("qwen"))),
}


@pytest.fixture(scope="module")
def both() -> Callable[[str], tuple[Tokenizer, FastTokenizer]]:
    made: dict[str, tuple[Tokenizer, FastTokenizer]] = {}

    def of(name: str) -> tuple[Tokenizer, FastTokenizer]:
        if name not in made:
            tokenizer = MADE[name]()
            made[name] = tokenizer, FastTokenizer(tokenizer.to_str().encode())
        return made[name]

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_byte_level_bpe_is_proved_and_other_tokenizers_are_refused(family: str) -> None:
    proof = prove(FAMILIES[family]().to_str().encode(), ["Hello world", "Grüße 東京"])

    if family in BYTE_LEVEL:
        assert replace(proof, counts=False) == PROVED
    else:
        assert not proof.holds
        assert proof.refused
        assert proof.remarks


@pytest.mark.parametrize("name", [name for name in MADE if "pairs" not in name])
def test_tokenizers_of_models_are_proved(name: str) -> None:
    proof = prove(MADE[name]().to_str().encode(), ["Hello world"])

    assert replace(proof, counts=False) == PROVED, proof


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(texts=TEXTS, literal=st.booleans())
def test_random_texts_have_the_same_ids(
    name: str, both: Callable[[str], tuple[Tokenizer, FastTokenizer]], texts: list[str], literal: bool
) -> None:
    tokenizer, fast = both(name)

    assert difference(tokenizer, fast, texts, literal=literal) is None


@pytest.mark.parametrize("name", ["qwen_nfc", "qwen_nfc_added", "gpt_2_added"])
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(texts=TEXTS, literal=st.booleans())
def test_random_texts_have_the_same_bytes(
    name: str, both: Callable[[str], tuple[Tokenizer, FastTokenizer]], texts: list[str], literal: bool
) -> None:
    """The offsets of `tokenizers` are the reference."""
    tokenizer, fast = both(name)

    assert counts_agree(tokenizer, fast, texts, literal=literal)


def test_bytes_follow_from_the_ids_of_qwen(tmp_path: Path) -> None:
    """Text that is not in NFC is counted by offsets. A character counts with its first token."""
    spec = TextGenerationSpec(tokenizer=str(save("qwen", tmp_path)), sequence_length=16)
    task = spec.fit([])
    assert task.proof.counts
    tokenizer, texts = task.tokenizer, ["Grüße 東京", "plain", "", unicodedata.normalize("NFD", "schön")]
    encoder = CountingEncoder(tokenizer, task._fast)

    assert [one is None for one in encoder.by_ids(texts)] == [False, False, False, True]
    expected = [one.counts.tolist() for one in encoder.by_offsets(texts)]
    stored = task.encode([{"text": text} for text in texts])
    assert [counts[:-1].tolist() for counts in stored["bytes"]] == expected
    assert stored["bytes"].values.sum() == sum(len(text.encode()) for text in texts)


def test_bytes_are_counted_by_offsets_where_these_leave_spaces_out(tmp_path: Path) -> None:
    """RoBERTa's post-processor trims offsets, and puts a space before the text."""
    assert not prove(FAMILIES["roberta"]().to_str().encode(), []).counts
    trimmed = with_nfc(of_pattern("qwen"))
    trimmed.post_processor = processors.ByteLevel(trim_offsets=True)
    proof = prove(trimmed.to_str().encode(), [])
    assert proof.holds
    assert not proof.counts


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_every_character_of_unicode_is_cut_in_the_same_way(name: str) -> None:
    tokenizer = of_pattern(name, pairs=True)
    fast = FastTokenizer(tokenizer.to_str().encode())
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 4096):
        text = "".join(f"a{one}1 {one}b\n{one}  {one}'s{one}{one} A" for one in map(chr, codes[start : start + 4096]))
        assert difference(tokenizer, fast, [text], literal=True) is None, hex(codes[start])


def test_a_pattern_that_is_cut_differently_is_noticed(both: Callable[[str], tuple[Tokenizer, FastTokenizer]]) -> None:
    """A fast encoder that cut numbers into three digits for Qwen, which takes single ones, would be refused."""
    tokenizer, fast = both("llama_3_pairs")
    before = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = of_pattern("qwen").pre_tokenizer

    assert difference(tokenizer, fast, ["", "the", "12"], literal=True) == "12"
    assert difference(tokenizer, fast, CASES, literal=True) is not None
    tokenizer.pre_tokenizer = before
    assert difference(tokenizer, fast, ["", "the", "12"], literal=True) is None


def test_bytes_that_a_vocabulary_lacks_refuse_it() -> None:
    """`tokenizers` drops them, and fastokens does not encode the text."""
    tokenizer = of_pattern("gpt_2")
    tokenizer.train_from_iterator(["ascii"], trainers.BpeTrainer(vocab_size=20, show_progress=False))

    assert tokenizer.encode("é").ids == []
    assert "does not encode" in prove(tokenizer.to_str().encode(), []).refused


def test_one_different_document_refuses_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    true = FastTokenizer.encode

    def wrong(self: FastTokenizer, texts: list[str], *, literal: bool) -> Ragged | None:
        return true(self, [text.replace("odd", "even") for text in texts], literal=literal)

    monkeypatch.setattr(FastTokenizer, "encode", wrong)
    spec = TextGenerationSpec(tokenizer=str(save("gpt_2", tmp_path)), sequence_length=16)
    task = spec.fit([{"text": f"row {number}"} for number in range(20)] + [{"text": "an odd row"}])

    assert "a document" in task.proof.refused
    assert "odd" not in task.proof.refused  # it is stored, where the text of a document must not be
    assert task.remarks == task.proof.remarks
    assert task.encode([{"text": "odd"}])["input_ids"][0].tolist() == [*FAMILIES["gpt_2"]().encode("odd").ids, 0]


@pytest.mark.parametrize("version", [("0.0.1", PROVED.machine), (PROVED.version, "pdp11"), ("", PROVED.machine)])
def test_another_version_leaves_the_ids_to_tokenizers(
    version: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = TextGenerationSpec(tokenizer=str(save("gpt_2", tmp_path / "tokenizer")), sequence_length=16)
    task, rows = spec.fit([]), [{"text": text} for text in CASES[::3]]
    assert task._fast is not None
    ours = task.encode(rows)["input_ids"]
    (tmp_path / "task").mkdir()
    task.save(tmp_path / "task")
    monkeypatch.setattr(encoder, "installed", lambda: version)
    loaded = load_task(tmp_path / "task")

    assert isinstance(loaded, TextGeneration)
    assert loaded._fast is None
    theirs = loaded.encode(rows)["input_ids"]
    assert np.array_equal(ours.values, theirs.values)
    assert np.array_equal(ours.lengths, theirs.lengths)


def test_features_do_not_depend_on_the_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An evaluation compares all files of a task but this one."""
    spec = TextGenerationSpec(tokenizer=str(save("gpt_2", tmp_path / "tokenizer")), sequence_length=16)
    files = []
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        spec.fit([]).save(tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        monkeypatch.setattr("maas_ray.tasks.text.fast.proof.installed", lambda: ("", "x86_64"))
    with_it, without = files

    assert json.loads(with_it.pop(ACCELERATION_FILE))["version"] == PROVED.version
    assert json.loads(without.pop(ACCELERATION_FILE))["refused"]
    assert with_it == without


def test_a_text_that_it_cannot_encode_is_left_to_tokenizers() -> None:
    tokenizer = of_pattern("gpt_2")
    fast = FastTokenizer(tokenizer.to_str().encode())

    assert fast.encode(["a\ud800"], literal=True) is None
    with pytest.raises(TypeError):
        IdEncoder(tokenizer, fast).encode(["a\ud800"])


def test_long_requests_have_the_ids_of_documents() -> None:
    tokenizer = with_added(of_pattern("llama_3"))
    fast = FastTokenizer(tokenizer.to_str().encode())
    for text in ("", "word <|go|> ", "the word <|go|> is 'in' it. " * 1000):
        for literal in (True, False):
            tokenizer.encode_special_tokens = literal
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert IdEncoder(tokenizer, fast).encode_request(text) == expected
            assert IdEncoder(tokenizer, fast).encode([text]).values.tolist() == expected
            assert encode_ids(tokenizer, ["", text, ""])[1].tolist() == expected


def test_a_sample_holds_the_first_documents_and_cuts_most() -> None:
    sample, texts = Sample(), [f"{number} " + "x" * 5000 for number in range(1500)]
    passing = sample.passing(iter(texts))

    assert next(passing) == texts[0]
    sample.fill(passing)
    assert len(sample.documents) == 1000
    assert sample.documents[0] == texts[0]
    assert sample.documents[-1] == texts[999][:2000]
    assert next(passing) == texts[1000]


def test_ragged_arrays_are_a_list_of_arrays() -> None:
    ragged = Ragged(np.arange(6), np.array([2, 0, 3, 1]))

    assert [array.tolist() for array in ragged] == [[0, 1], [], [2, 3, 4], [5]]
    assert len(ragged) == 4
    assert ragged[-1].tolist() == [5]
    assert [array.tolist() for array in ragged[1:3]] == [[], [2, 3, 4]]
    with pytest.raises(IndexError):
        ragged[4]
