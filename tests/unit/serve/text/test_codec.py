"""Requests become token ids: as the training text did, within the context and the vocabulary."""

import asyncio
import json
import time

import pytest

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.text.codec import TextCodec
from maas_ray.serve.text.types import SamplingParams
from tests.support.bundles import TEXT
from tests.support.errors import raises
from tests.support.prompts import TASK, ask


@pytest.fixture
def codec() -> TextCodec:
    return TextCodec(TASK, context=64, end_ids=())


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


LONGEST = max((TASK.tokenizer.decode([token]) for token in range(TASK.vocab_size)), key=len)


def test_a_prompt_that_cannot_fit_is_refused_unread(codec: TextCodec) -> None:
    assert len(codec.prepare(ask(LONGEST * 63, max_tokens=1))[0].prompt_ids) == 63  # the most that can fit
    chat = {"role": "user", "content": "x"}
    for prompt in ("x" * 10**7, [chat | {"content": "x" * 10**7}], [chat] * 100_000, [5] * 10**6):
        request = ask(prompt)
        began = time.perf_counter()
        with raises(RequestError, "context_length_exceeded", "64 tokens") as caught:
            codec.prepare(request)
        assert time.perf_counter() - began < 0.05
        assert caught.value.param == request.param
    with raises(RequestError, "context_length_exceeded", "64 tokens"):
        codec.prepare(ask("a", more_prompts=("b", "x" * 10**7)))
    tools = ({"type": "function", "function": {"name": "f", "description": "x" * 10**7}},)
    with raises(RequestError, "context_length_exceeded", "64 tokens"):
        codec.prepare(ask([chat], tools=tools))


def test_a_long_prompt_is_tokenised_beside_the_event_loop() -> None:
    codec = TextCodec(TASK, context=10**7, end_ids=())
    text = " ".join(f"word{number}" for number in range(200_000))

    async def prepare() -> tuple[float, float]:
        began = last = time.perf_counter()
        longest = 0.0
        preparing = asyncio.create_task(asyncio.to_thread(codec.prepare, ask(text)))
        while not preparing.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        await preparing
        return longest, now - began

    longest, total = asyncio.run(prepare())
    assert longest < total / 2


@pytest.mark.parametrize("ids", [[1, 99999], [-1]])
def test_ids_outside_the_vocabulary_are_refused(codec: TextCodec, ids: list[int]) -> None:
    with raises(RequestError, "invalid_value", "'prompt'", "0 to 319", ids[-1]) as caught:
        codec.prepare(ask(ids))
    assert caught.value.status == 400


def test_seeds_differ_unless_requested(codec: TextCodec) -> None:
    assert codec.prepare(ask("a", seed=7))[0].seed == 7
    assert codec.prepare(ask("a", seed=None))[0].seed != codec.prepare(ask("a", seed=None))[0].seed


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
