"""Tokens become text piece by piece: nothing broken, nothing leaked, in every tokenizer family."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_ray.serve.text.answer_text import (
    ByteDetokenizer,
    Detokenizer,
    StopStrings,
    WindowDetokenizer,
    detokenizer,
)
from maas_ray.serve.text.codec import TextCodec
from maas_ray.serve.text.streaming import StreamedAnswer, merge_answers
from maas_ray.serve.text.types import Delta, GenerateRequest, SamplingParams, Tokens
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from tests.support.prompts import TASK, ask
from tests.support.tokenizer_families import BOS, FAMILIES, save


@given(st.text(max_size=40), st.lists(st.integers(1, 4), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_streamed_text_does_not_depend_on_the_grouping_of_tokens(text: str, sizes: list[int]) -> None:
    ids = TASK.tokenizer.encode(text).ids
    for growing in both():
        out, at = "", 0
        for size in [*sizes, len(ids)]:
            piece = growing.push(ids[at : at + size])
            assert not piece.endswith("\ufffd") or "\ufffd" in text
            out, at = out + piece, at + size
        assert out + growing.flush() == text


def both() -> tuple[Detokenizer, Detokenizer]:
    """A detokenizer of byte-level BPE, and one of any tokenizer."""
    assert isinstance(detokenizer(TASK), ByteDetokenizer)
    return detokenizer(TASK), WindowDetokenizer(TASK.tokenizer)


def test_a_character_is_held_back_until_it_is_complete() -> None:
    ids = TASK.tokenizer.encode("é🚀").ids
    assert len(ids) > 2
    for growing in both():
        pieces = [growing.push([one]) for one in ids]
        assert [piece for piece in pieces if piece] == ["é", "🚀"]


def test_any_tokens_of_byte_level_bpe_are_decoded_as_the_library_decodes_them(tmp_path: Path) -> None:
    """Halves of characters, special tokens, and added tokens of characters that stand for other bytes."""
    random, families = (
        Random(0),
        [family for family in FAMILIES if family_task(family, tmp_path / family).spelling.joins],
    )
    assert families
    for family in families:
        task = family_task(family, tmp_path / family)
        task.tokenizer.add_tokens(["<é>", "<東>"])
        task.tokenizer.add_special_tokens(["<extra>"])
        for _ in range(100):
            ids = random.choices(range(task.vocab_size + 3), k=12)
            growing = detokenizer(task)
            pieces = [growing.push(ids[at : at + 3]) for at in range(0, 12, 3)]
            assert "".join(pieces) + growing.flush() == task.tokenizer.decode(ids, skip_special_tokens=True)


def family_task(family: str, directory: Path, **config) -> TextGeneration:
    return TextGenerationSpec(tokenizer=str(save(family, directory, **config)), sequence_length=16).fit([])


def streamed(task: TextGeneration, prompt: list[int], ids: list[int], lead: str = "", size: int = 1) -> list[Delta]:
    asked = GenerateRequest(prompt, 1000, 0, (task.end_of_text_id,), SamplingParams(logprobs=True))
    growing, ids = StreamedAnswer(task, asked, (), 0, lead), [*ids, task.end_of_text_id]
    pieces = [growing.push(Tokens(ids[at : at + size], [-1.0] * size)) for at in range(0, len(ids), size)]
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_are_one_text(family: str, tmp_path: Path) -> None:
    """The text of all tokens is what the `tokenizers` library decodes."""
    task = family_task(family, tmp_path)
    codec = TextCodec(task, context=64, end_ids=())
    for text in [
        "Hello world, how are you?",
        "Grüße 東京 🙂é x",
        " a  b \n c",
        "the town",
        "é \u200b👨\u200d👩\u200d👧",
    ]:
        ids = task.tokenizer.encode(text, add_special_tokens=False).ids
        whole = task.tokenizer.decode(ids)
        beginning = ""  # complete characters; decoders of single bytes undo them if others follow in part
        for cut in range(len(ids) + 1):
            decoded = task.tokenizer.decode(ids[:cut])
            beginning = max(beginning, decoded.rstrip("\ufffd"), key=len)
            asked = [[*task.layout.prefix, *ids[:cut]]]  # token ids
            [prepared] = codec.prepare(ask(beginning))
            if prepared.prompt_ids[len(task.layout.prefix) :] == ids[:cut]:
                asked.append(prepared.prompt_ids)  # a text
            for prompt in asked:
                for size in (1, 3):
                    deltas = streamed(task, prompt, ids[cut:], size=size)
                    answer = "".join(delta.text for delta in deltas)
                    assert beginning + answer == whole
                    logprobs = [one for delta in deltas for one in delta.logprobs]
                    # Each token is where its text begins.
                    assert all(0 <= one.offset <= len(answer) for one in logprobs)
                    tokens = [one.token for one in logprobs]
                    if not {"<unk>", "[UNK]"} & {*tokens} and "\ufffd" not in decoded:
                        assert b"".join(one.spelled for one in logprobs) == answer.encode()
                        for one in logprobs:
                            assert "\ufffd" in one.token or answer[one.offset :].startswith(one.token)


def test_an_answer_after_a_special_token_begins_as_a_text_does(tmp_path: Path) -> None:
    """Llama 2 writes a space after each special token, which is not text; Mistral writes none."""
    for family, text in (("llama_2", "Hello"), ("mistral", " Hello")):
        task = family_task(family, tmp_path / family)
        ids = task.tokenizer.encode("Hello", add_special_tokens=False).ids
        prompt = [*task.prompt_ids("x"), task.end_of_text_id]
        assert "".join(delta.text for delta in streamed(task, prompt, ids)) == text


def test_a_prompt_begins_as_a_document_does(tmp_path: Path) -> None:
    task = family_task("llama_2", tmp_path)
    codec = TextCodec(task, context=64, end_ids=())
    document = task.encode([{"text": "Hello world"}])["input_ids"][0].tolist()
    assert codec.prepare(ask("Hello world"))[0].prompt_ids == document[:-1]
    assert document[0] == BOS["llama_2"]
    assert codec.prepare(ask(""))[0].prompt_ids == [BOS["llama_2"]]
    assert codec.prepare(ask([5, 6]))[0].prompt_ids == [5, 6]  # tokens are the client's own


def test_the_space_that_a_chat_template_writes_is_not_part_of_the_answer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    task = family_task("llama_2", tmp_path, chat_template=template)
    codec, asked = TextCodec(task, 64, ()), ask([{"role": "user", "content": "x"}])
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hello world"}]
    spec = TextGenerationSpec(tokenizer=str(tmp_path), sequence_length=16, column="messages")
    learnt = spec.fit([]).encode([spec.parse_row({"messages": chat})])["input_ids"][0].tolist()
    [prepared] = codec.prepare(asked)
    prompt = prepared.prompt_ids
    assert learnt[: len(prompt)] == prompt
    for size in (1, 3):
        deltas = streamed(task, prompt, learnt[len(prompt) : -1], codec.lead(asked), size)
        assert "".join(delta.text for delta in deltas) == "Hello world"
        assert deltas[0].logprobs[0].offset == 0
    assert "".join(delta.text for delta in streamed(task, prompt, [], codec.lead(asked))) == ""


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    ids = TASK.tokenizer.encode("a🚀").ids[:-1]
    for growing in both():
        assert growing.push(ids) == "a"
        assert growing.flush() == "\ufffd"


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_no_part_of_a_stop_string_is_streamed(text: str, stops: list[str], sizes: list[int]) -> None:
    strings, out, at, stopped = StopStrings(tuple(stops)), "", 0, False
    for size in [*sizes, len(text)]:
        piece, stopped = strings.push(text[at : at + size])
        out, at = out + piece, at + size
        if stopped:
            break
    out += "" if stopped else strings.flush()
    # A stop string that is met first in time ends the answer, so what came out never holds a whole one.
    places = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(places)
    assert text.startswith(out)
    assert not any(stop in out for stop in stops)
    assert out == text or stopped


def asked_of_engine() -> GenerateRequest:
    return GenerateRequest([1, 2], max_tokens=1000, seed=0, end_ids=(0,), sampling=SamplingParams(logprobs=True))


@given(st.text("ab é🚀", max_size=20), st.lists(st.integers(1, 5), min_size=1), st.sampled_from([(), ("b ",), ("é",)]))
@settings(deadline=None)
def test_log_probabilities_come_with_their_text(text: str, sizes: list[int], stop: tuple[str, ...]) -> None:
    ids = [*TASK.tokenizer.encode(text).ids, 0]
    growing, deltas, at = StreamedAnswer(TASK, asked_of_engine(), stop, 3), [], 0
    for size in [*sizes, *[1] * len(ids)]:
        some = ids[at : at + size]
        delta = growing.push(Tokens(some, [-float(at + place) for place in range(len(some))])) if some else None
        at += size
        deltas += [delta] if delta else []
        if delta and delta.finish_reason:
            break
    said = "".join(delta.text for delta in deltas)
    expected = min((text[: text.find(one)] for one in stop if one in text), default=text)
    assert said == expected
    assert {(delta.index, delta.prompt_tokens) for delta in deltas} == {(3, 2)}
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    found = [one for delta in deltas for one in delta.logprobs]
    assert [one.logprob for one in found] == [-float(place) for place in range(len(found))]
    spelled = b"".join(one.spelled for one in found)
    if said == text:
        assert spelled == text.encode()
        assert len(found) == len(ids) - 1  # the token that ends it is none of its text
    else:
        assert spelled.startswith(said.encode())
        assert all(one.offset < len(said) for one in found)
    begins = 0
    for one in found:
        assert said.encode().startswith(spelled[:begins][: len(said.encode())])
        assert one.offset == len(spelled[:begins].decode(errors="ignore"))
        begins += len(one.spelled)


def test_an_impossible_token_has_the_least_log_probability_of_json() -> None:
    delta = StreamedAnswer(TASK, asked_of_engine(), ()).push(Tokens([9], [float("-inf")]))
    assert delta is not None
    assert delta.logprobs[0].logprob == -9999.0


def test_merged_answers_are_concurrent_and_are_closed_together() -> None:
    left: list[int] = []

    async def answer(index: int, pieces: int) -> AsyncGenerator[Delta, None]:
        try:
            for _ in range(pieces):
                await asyncio.sleep(0)
                yield Delta(str(index), None, 1, 1, index)
        finally:
            left.append(index)

    async def broken() -> AsyncGenerator[Delta, None]:
        yield Delta("x", None, 1, 1)
        raise ValueError("broken")

    async def run() -> None:
        async with aclosing(merge_answers([answer(0, 3), answer(1, 5)])) as deltas:
            found = [delta.index async for delta in deltas]
        assert sorted(found) == [0] * 3 + [1] * 5
        assert found[:4] == [0, 1, 0, 1]
        left.clear()
        async with aclosing(merge_answers([answer(0, 10**9), answer(1, 10**9)])) as deltas:
            await anext(deltas)
        assert sorted(left) == [0, 1]
        left.clear()
        async with aclosing(merge_answers([answer(0, 10**9), broken()])) as deltas:
            with pytest.raises(ValueError, match="broken"):
                [delta async for delta in deltas]
        assert left == [0]

    asyncio.run(run())
