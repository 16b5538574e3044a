"""OpenAI's API for completions and chats: models, answers, streams and parameters."""

import asyncio
import json
from functools import partial

import pytest

from maas_ray.serve.api.app import create_app
from maas_ray.serve.text.types import SamplingParams, TextRequest
from tests.support.echo import CALL, LIMIT, SCHEMA, TOOL, Call, EchoAndSums, chat, complete, events, say
from tests.support.models import send


def test_models_are_listed_and_described(call: Call) -> None:
    listed = call("GET", "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["echo"]  # models of this API
    assert call("GET", "/v1/models/echo").json() == listed["data"][0] | {"name": "echo", "ready": False}
    assert listed["data"][0]["created"] == 1_700_000_000


def test_a_completion_has_openais_shape(call: Call) -> None:
    body = complete(call).json()
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert complete(call, prompt=["a"]).json()["choices"][0]["text"] == "a"
    assert complete(call, prompt=[5, 6]).json()["choices"][0]["text"] == "[5,6]"
    assert complete(call, prompt=[[5, 6]]).json()["choices"][0]["text"] == "[5,6]"


def test_a_chat_answer_has_openais_shape(call: Call) -> None:
    message = say([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}], role="developer", name="n")
    body = chat(call, messages=[message]).json()
    assert body["object"] == "chat.completion"
    said = body["choices"][0]["message"]
    assert said["role"] == "assistant"
    assert json.loads(said["content"].replace('":"', '": "')) == [{"role": "system", "content": "xy", "name": "n"}]


@pytest.mark.parametrize("usage", [False, True])
def test_streams_end_with_a_reason_usage_and_done(call: Call, usage: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": usage}}
    found = events(complete(call, prompt="a b c", **options))
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    assert len({chunk["id"] for chunk in chunks}) == 1
    if usage:
        assert chunks[-1]["choices"] == []
        assert chunks.pop()["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert all(("usage" in chunk) == usage and not chunk.get("usage") for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]

    deltas = [chunk["choices"][0]["delta"] for chunk in events(chat(call, stream=True))[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}


def test_several_answers_to_several_prompts(call: Call) -> None:
    body = complete(call, prompt=["a b", "c"], n=2, best_of=2).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "ab"),
        (1, "ab"),
        (2, "c"),
        (3, "c"),
    ]
    # Each prompt, of 2 tokens, counts once; each answer counts.
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events(complete(call, prompt=["a b", "c"], n=2, **options))
    assert last["usage"] == body["usage"]
    said, ends = {}, {}
    for chunk in chunks:
        [choice] = chunk["choices"]
        assert choice["index"] not in ends
        said[choice["index"]] = said.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert said == {0: "ab", 1: "ab", 2: "c", 3: "c"}
    assert ends == dict.fromkeys(range(4), "stop")
    deltas = [chunk["choices"][0] for chunk in events(chat(call, n=2, stream=True))[:-1]]
    assert [(one["index"], one["delta"].get("role")) for one in deltas if one["delta"].get("role")] == [
        (0, "assistant"),
        (1, "assistant"),
    ]
    too_many = complete(call, prompt=["a", "b", "c"], n=11).json()["error"]
    assert (too_many["param"], too_many["code"]) == ("prompt", "invalid_value")
    assert "33" in too_many["message"]
    assert "32" in too_many["message"]


def test_log_probabilities_are_reported_when_requested(call: Call) -> None:
    assert complete(call, logprobs=0).json()["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }
    found = chat(call, logprobs=True, top_logprobs=0).json()["choices"][0]["logprobs"]["content"]
    assert found[-1] == {
        "token": '"user"}]',
        "logprob": -0.5,
        "bytes": list(b'"user"}]'),
        "top_logprobs": [],
    }
    for path, asked in ((complete, {"logprobs": 0}), (chat, {"logprobs": True})):
        chunks = [chunk["choices"][0] for chunk in events(path(call, stream=True, **asked))[:-1]]
        pieces = [one["logprobs"] for one in chunks if one.get("text") or one.get("delta", {}).get("content")]
        assert all(pieces)
        assert [one["logprobs"] for one in chunks if one["finish_reason"]] == [None]
        assert path(call).json()["choices"][0]["logprobs"] is None


def test_fields_on_which_nothing_hangs_are_accepted() -> None:
    models = EchoAndSums()
    call = partial(send, create_app(models, body_limit=LIMIT))
    stop = [f"stop {number}" for number in range(64)]
    assert complete(call, prompt=None, top_p=0, stop=stop, of_tomorrow=None).status_code == 200
    assert (models.asked.prompt, models.asked.stop) == ("", tuple(stop))
    assert 0 < models.asked.sampling.top_p < 1e-37
    assert chat(call, top_logprobs=5, logprobs=False, of_tomorrow=None).status_code == 200
    assert not models.asked.sampling.logprobs


def test_a_chat_request_reaches_the_model_with_all_parameters() -> None:
    models = EchoAndSums()

    def asked(path: str, **body) -> TextRequest:
        response = send(create_app(models, body_limit=LIMIT), "POST", path, json={"model": "echo"} | body)
        assert response.status_code == 200
        return models.asked

    request = asked(
        "/v1/chat/completions",
        messages=[
            say("x"),
            {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [CALL]},
            {"role": "tool", "content": "y", "tool_call_id": "1"},
        ],
        tools=[TOOL],
        tool_choice="auto",
        n=2,
        frequency_penalty=1,
        presence_penalty=-0.5,
        logit_bias={"5": -100},
        logprobs=True,
        response_format={"type": "json_schema", "json_schema": SCHEMA | {"strict": True}},
    )
    assert request.prompt[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }
    assert request.prompt[2] == {"role": "tool", "content": "y", "tool_call_id": "1"}
    assert request.tools == (TOOL,)
    assert (request.n, request.json_schema) == (2, SCHEMA["schema"])
    assert request.sampling == SamplingParams(
        frequency_penalty=1.0, presence_penalty=-0.5, logprobs=True, logit_bias=((5, -100.0),)
    )
    plain = asked("/v1/chat/completions", messages=[say("x")], tools=[TOOL], tool_choice="none")
    assert plain.tools == ()
    assert asked("/v1/chat/completions", messages=[say("x")], response_format={"type": "json_object"}).json_schema == {
        "type": "object"
    }


def test_an_error_within_a_stream_is_its_last_event(call: Call) -> None:
    response = complete(call, prompt="a break b", stream=True)
    assert response.status_code == 200
    found = events(response)
    assert found[-1]["error"]["code"] == "model_unavailable"
    assert "[DONE]" not in found


def test_an_error_before_a_stream_has_a_status(call: Call) -> None:
    response = complete(call, prompt="long", stream=True)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_cancels_the_stream() -> None:
    models = EchoAndSums()
    app = create_app(models, body_limit=LIMIT)
    body = json.dumps({"model": "echo", "prompt": "a wait", "stream": True}).encode()

    async def leave() -> None:
        sent: asyncio.Queue = asyncio.Queue()
        received = iter([{"type": "http.request", "body": body, "more_body": False}])
        gone = asyncio.Event()

        async def receive() -> dict:
            message = next(received, None)
            if message is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            return message

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        asked = asyncio.create_task(app(scope, receive, sent.put))
        while (await asyncio.wait_for(sent.get(), 5))["type"] != "http.response.body":
            pass
        gone.set()
        await asyncio.wait_for(asked, 5)

    asyncio.run(leave())
    assert models.cancelled == 1


def test_parameters_that_change_nothing_are_accepted(call: Call) -> None:
    neutral = {
        "n": 1,
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "top_logprobs": None,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "stop": None,
        "temperature": None,
        "seed": -3,
    }
    assert chat(call, **neutral).status_code == 200
    assert complete(call, best_of=1, echo=False, suffix=None, logprobs=None, stop=["x"] * 4).status_code == 200
