"""The events of OpenAI's streams: any text survives, and what waits together is sent together."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from maas_ray.errors import RequestError
from maas_ray.serve.api.openai.responses import Renderer
from maas_ray.serve.text.types import CallPiece, Delta, TokenLogprob


def streamed(deltas: Sequence[Delta], *, chat: bool, usage: bool = False, broken: bool = False, **options) -> list[str]:
    """The pieces that are sent, in order."""

    async def rest() -> AsyncGenerator[Delta, None]:
        for delta in deltas[1:]:
            yield delta
        if broken:
            raise RequestError("it died", code="model_unavailable", status=503)

    async def run() -> list[bytes]:
        renderer = Renderer("m", "f" * 20, chat=chat, **options)
        return [sent async for sent in renderer.stream(deltas[0], rest(), include_usage=usage)]

    return [sent.decode() for sent in asyncio.run(run())]


def chunks(sent: Sequence[str]) -> list[dict]:
    events = "".join(sent).split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events if event != "data: [DONE]"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(_TEXT, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_any_text_arrives_in_openais_shape(texts: list[str], chat: bool, usage: bool) -> None:
    deltas = [Delta(text, None, 3, place) for place, text in enumerate(texts)] + [Delta("é\n", "stop", 3, 9)]
    found = chunks(streamed(deltas, chat=chat, usage=usage))
    head = {"object": "chat.completion.chunk" if chat else "text_completion", "model": "m"}
    assert all(head.items() <= chunk.items() and ("usage" in chunk) == usage for chunk in found)
    if usage:
        last = found.pop()
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
        assert last["choices"] == []
    if chat:
        assert all(ChatCompletionChunk.model_validate(chunk).to_dict() == chunk for chunk in found)
    choices = [choice for chunk in found for choice in chunk["choices"]]
    assert all(set(one) == {"index", "delta" if chat else "text", "logprobs", "finish_reason"} for one in choices)
    said = [one["delta"].get("content", "") if chat else one["text"] for one in choices]
    assert "".join(said) == "".join(texts) + "é\n"
    assert [one["finish_reason"] for one in choices] == [None] * (len(choices) - 1) + ["stop"]


@pytest.mark.parametrize("chat", [False, True])
def test_what_waits_together_is_sent_together(chat: bool) -> None:
    deltas = [Delta("a", None, 1, 1), Delta("b", None, 1, 2), Delta("c", "length", 1, 3)]
    sent = streamed(deltas, chat=chat, usage=True)
    assert [one.count("data: ") for one in sent] == [2 if chat else 1, 1, 4]  # text, reason, usage, [DONE]
    assert sent[-1].endswith("data: [DONE]\n\n")
    assert len(streamed([Delta("a", "stop", 1, 1)], chat=chat)) == 1


def test_the_end_of_one_of_several_answers_is_sent_at_once() -> None:
    deltas = [Delta("a", "stop", 1, 1, 1), Delta("b", None, 1, 1, 0), Delta("c", "stop", 1, 2, 0)]
    sent = streamed(deltas, chat=False, n=2)
    assert [[one["choices"][0]["index"] for one in chunks([piece])] for piece in sent] == [[1, 1], [0], [0, 0]]
    assert len(streamed(deltas, chat=False, n=1, prompts=2)) == 3


def test_an_error_ends_a_stream_without_done_and_nothing_is_lost() -> None:
    for ended in (None, "stop"):
        sent = streamed([Delta("a", ended, 1, 1)], chat=True, usage=True, broken=True)
        assert "[DONE]" not in "".join(sent)
        *found, last = chunks(sent)
        assert found[1]["choices"][0]["delta"] == {"content": "a"}
        assert last == {
            "error": {"message": "it died", "type": "server_error", "param": None, "code": "model_unavailable"}
        }


def test_all_parts_of_an_answer_are_events() -> None:
    logprobs = (TokenLogprob("é", "é".encode(), -0.5, 0),)
    calls = (CallPiece(0, "f", ""), CallPiece(0, "", '{"a"'))
    sent = streamed([Delta("é", "tool_calls", 1, 1, 0, logprobs, "why", calls)], chat=True, logprobs=True)
    found = [ChatCompletionChunk.model_validate(chunk).choices[0] for chunk in chunks(sent)]
    assert [one.delta.model_dump(exclude_unset=True).get("reasoning_content") for one in found][1] == "why"
    assert found[2].delta.content == "é"
    assert [(one.token, one.logprob, one.bytes) for one in found[2].logprobs.content] == [("é", -0.5, [0xC3, 0xA9])]
    [first] = found[3].delta.tool_calls
    [second] = found[4].delta.tool_calls
    assert (first.index, first.function.name, first.function.arguments, first.type) == (0, "f", "", "function")
    assert (second.index, second.id, second.function.name, second.function.arguments) == (0, None, None, '{"a"')
    assert found[5].finish_reason == "tool_calls"
