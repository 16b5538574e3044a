"""Prompts to ids, ids to text: nothing broken, nothing leaked."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_ray.errors import InvalidError, PromptTooLongError, RequestError
from maas_ray.serve.text.codec import Detokenizer, StopStrings, TextCodec
from maas_ray.serve.text.streaming import StreamedAnswer, merge_answers
from maas_ray.serve.text.types import Delta, GenerateRequest, SamplingParams, TextRequest, Tokens
from maas_ray.tasks import load_task
from maas_ray.tasks.text.chat import ChatTemplate
from maas_ray.tasks.text.generation import TextGeneration, TextGenerationSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.bundles import TEXT, text_task
from tests.support.errors import raises
from tests.support.tokenizer_families import BOS, FAMILIES, save

TASK = text_task()
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ask(prompt, **changes) -> TextRequest:
    return TextRequest(prompt=prompt, **({"max_tokens": 4, "seed": 1} | changes))


@pytest.fixture
def codec() -> TextCodec:
    return TextCodec(TASK, context=64, end_ids=())


@given(st.text(max_size=40), st.lists(st.integers(1, 4), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_streamed_text_does_not_depend_on_the_grouping_of_tokens(text: str, sizes: list[int]) -> None:
    ids = TASK.tokenizer.encode(text).ids
    detokenizer, out, at = Detokenizer(TASK.tokenizer), "", 0
    for size in [*sizes, len(ids)]:
        piece = detokenizer.push(ids[at : at + size])
        assert not piece.endswith("\ufffd") or "\ufffd" in text
        out, at = out + piece, at + size
    assert out + detokenizer.flush() == text


def test_a_character_is_held_back_until_it_is_complete() -> None:
    ids = TASK.tokenizer.encode("é🚀").ids
    assert len(ids) > 2
    detokenizer = Detokenizer(TASK.tokenizer)
    pieces = [detokenizer.push([one]) for one in ids]
    assert [piece for piece in pieces if piece] == ["é", "🚀"]


# --- text of every tokenizer family


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
    detokenizer = Detokenizer(TASK.tokenizer)
    assert detokenizer.push(ids) == "a"
    assert detokenizer.flush() == "\ufffd"


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


def test_prompts_are_tokenised_as_the_training_text_was(codec: TextCodec) -> None:
    for text in TEXT:
        [prepared] = codec.prepare(ask(text, max_tokens=1))
        assert prepared.prompt_ids == TASK.encode([{"text": text}])["input_ids"][0][:-1].tolist()
    special = codec.prepare(ask("<|endoftext|>"))[0].prompt_ids
    assert len(special) > 1  # text is never taken for a special token
    assert TASK.end_of_text_id not in special


def test_an_empty_prompt_begins_a_document(codec: TextCodec) -> None:
    assert codec.prepare(ask(""))[0].prompt_ids == [TASK.end_of_text_id]
    assert TASK.end_of_text_id in codec.prepare(ask(""))[0].end_ids


def test_prompt_and_answer_fit_the_context(codec: TextCodec) -> None:
    prompt = TASK.tokenizer.encode("x" * 10).ids
    assert codec.prepare(ask(prompt, max_tokens=None))[0].max_tokens == 64 - len(prompt)
    assert codec.prepare(ask(prompt, max_tokens=64 - len(prompt)))[0].max_tokens == 64 - len(prompt)
    with raises(PromptTooLongError, "context_length_exceeded", "64 tokens") as caught:
        codec.prepare(ask(prompt, max_tokens=65 - len(prompt)))
    assert caught.value.param == "prompt"
    with pytest.raises(PromptTooLongError) as caught:
        codec.prepare(ask([{"role": "user", "content": "x" * 200}], max_tokens=None))
    assert caught.value.param == "messages"


@pytest.mark.parametrize("ids", [[1, 99999], [-1]])
def test_ids_outside_the_vocabulary_are_refused(codec: TextCodec, ids: list[int]) -> None:
    with raises(RequestError, "invalid_value", "'prompt'", "0 to 319", ids[-1]) as caught:
        codec.prepare(ask(ids))
    assert caught.value.status == 400


def test_seeds_differ_unless_requested(codec: TextCodec) -> None:
    assert codec.prepare(ask("a", seed=7))[0].seed == 7
    assert codec.prepare(ask("a", seed=None))[0].seed != codec.prepare(ask("a", seed=None))[0].seed


def test_a_template_s_own_special_tokens_become_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer

    TASK.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<|im_{end}|>", special=True) for end in ("start", "end")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(CHAT_ML)
    task = type(TASK).load_state(TASK.spec, {}, tmp_path)
    codec = TextCodec(task, context=64, end_ids=())
    ids = codec.prepare(ask([{"role": "user", "content": "hi"}]))[0].prompt_ids
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == expected
    assert tokenizer.token_to_id("<|im_start|>") in ids


def test_a_chat_template_may_refuse_messages_but_is_sandboxed() -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with raises(RequestError, "invalid_value", "roles must alternate"):
        refusing.render([{"role": "user", "content": "x"}])
    escaping = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {})
    with raises(RequestError, "invalid_value", "unsafe"):
        escaping.render([{"role": "user", "content": "x"}])


def test_without_a_template_a_chat_is_refused(tmp_path: Path) -> None:
    TASK.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    codec = TextCodec(load_task(tmp_path), context=64, end_ids=())
    with raises(RequestError, "chat_not_supported", "/v1/completions"):
        codec.prepare(ask([{"role": "user", "content": "x"}]))


def test_several_answers_are_independent_of_each_other(codec: TextCodec) -> None:
    several = codec.prepare(ask("a", n=3, more_prompts=("b", [5, 6])))
    assert [one.prompt_ids for one in several[::3]] == [
        TASK.tokenizer.encode("a").ids,
        TASK.tokenizer.encode("b").ids,
        [5, 6],
    ]
    assert several[:1] == codec.prepare(ask("a"))
    assert several[3:4] == codec.prepare(ask("b"))  # a prompt's answers do not depend on those before it
    seeds = [one.seed for one in several]
    assert seeds[:3] == seeds[3:6] == seeds[6:]
    assert len(set(seeds)) == 3
    assert seeds == [one.seed for one in codec.prepare(ask("a", n=3, more_prompts=("b", [5, 6])))]
    with raises(RequestError, "invalid_value", "'prompt'", -1):
        codec.prepare(ask("a", more_prompts=([-1],)))


ASKED = {
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "logprobs": True,
    "logit_bias": ((5, 1.0),),
    "json_schema": {"type": "object"},
}


@pytest.mark.parametrize("name", ASKED)
def test_parameters_that_the_engine_does_not_support_are_refused(name: str) -> None:
    is_schema = name == "json_schema"
    asked = ask("a", **({name: ASKED[name]} if is_schema else {"sampling": SamplingParams(**{name: ASKED[name]})}))
    supported = frozenset(ASKED)
    [prepared] = TextCodec(TASK, 64, (), supported).prepare(asked)
    assert prepared.json_schema == (json.dumps(ASKED[name]) if is_schema else None)
    assert prepared.sampling == asked.sampling
    with pytest.raises(RequestError) as caught:
        TextCodec(TASK, 64, (), supported - {name}).prepare(asked)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")
    assert caught.value.param == ("response_format" if name == "json_schema" else name)


def test_logit_bias_outside_the_vocabulary_is_refused() -> None:
    codec = TextCodec(TASK, 64, (), frozenset({"logit_bias"}))
    with raises(RequestError, "invalid_value", "'logit_bias'", "0 to 319", 320):
        codec.prepare(ask("a", sampling=SamplingParams(logit_bias=((320, 1.0),))))


def test_a_chat_prompt_equals_the_training_text() -> None:
    chats = [
        [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"It is {n + 1}."}]
        for n in range(40)
    ]
    spec = TextGenerationSpec(tokenizer=FittedTokenizer(vocab_size=300), sequence_length=64, column="messages")
    rows = [spec.parse_row({"messages": chat}) for chat in chats]
    task = spec.fit(rows)
    [learnt] = task.encode(rows[:1])["input_ids"]
    [asked] = TextCodec(task, context=64, end_ids=()).prepare(ask(chats[0][:1]))
    assert learnt[: len(asked.prompt_ids)].tolist() == asked.prompt_ids
    rest = learnt[len(asked.prompt_ids) :].tolist()
    assert task.tokenizer.decode(rest, skip_special_tokens=True) == "It is 1."
    assert rest.count(task.end_of_text_id) == 1  # at the end of the answer
    assert rest[-1] in asked.end_ids
    for wrong, named in (("x", "str"), ([{"role": "user"}], "messages[0].content")):
        with raises(InvalidError, "wrong_type", named):
            spec.parse_row({"messages": wrong})
    assert spec.parse_row({"messages": []}) is None


# --- tools

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
WITH_TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %};{% endfor %}"
)
USER = {"role": "user", "content": "x"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "content": "5", "tool_call_id": "1"}


def test_a_chat_template_gets_tools_calls_and_results() -> None:
    rendered = ChatTemplate(WITH_TOOLS, {}).render([USER, CALLED, ANSWERED], [TOOL])
    assert rendered == (
        f"<tools>{json.dumps(TOOL)}</tools>user: x;assistant: "
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>;tool: 5;'
    )


@pytest.mark.parametrize(
    ("template", "messages", "tools", "param"),
    [
        (CHAT_ML, [USER], [TOOL], "tools"),
        (CHAT_ML, [USER, CALLED, ANSWERED], [], "messages"),
        (
            "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}{% endif %}{% endfor %}",
            [USER, ANSWERED],
            [],
            "messages",
        ),
    ],
)
def test_tools_are_refused_if_the_chat_template_ignores_them(
    template: str, messages: list, tools: list, param: str
) -> None:
    with raises(RequestError, "unsupported_parameter") as caught:
        ChatTemplate(template, {}).render(messages, tools)
    assert caught.value.param == param


# --- growing answers


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
