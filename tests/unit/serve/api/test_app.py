"""The gateway's HTTP application: right answers in each API's words, and never a 500 for a client's mistake."""

import asyncio
import gc
import json
import tracemalloc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, MutableMapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray.errors import OverloadedError, PromptTooLongError, RequestError
from maas_ray.serve.api import middleware, refusals
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody, parse_infer
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route, from_config, to_config
from maas_ray.serve.text.types import Delta, SamplingParams, TextRequest, TokenLogprob
from maas_ray.tasks import TensorSpec
from tests.support.errors import raises
from tests.support.models import INPUTS, OUTPUTS, InProcess, route, send

LIMIT = 2000


class EchoAndSums(InProcess):
    """A model that echoes its prompt, and one that sums."""

    def __init__(self) -> None:
        super().__init__(route("echo", "generate"), route("sums", "predict"))
        self.cancelled = 0

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        return route.name == "sums"

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        self.callers["complete"] = caller
        async with aclosing(self.stream(route, request, caller=caller)) as deltas:
            found = [delta async for delta in deltas]
        whole = []
        for index in range(max(delta.index for delta in found) + 1):
            own = [delta for delta in found if delta.index == index]
            logprobs = tuple(one for delta in own for one in delta.logprobs)
            whole.append(Delta("".join(delta.text for delta in own), "stop", 2, len(own), index, logprobs))
        return whole

    async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        self.callers["stream"] = caller
        self.asked = request
        prompts = (request.prompt, *request.more_prompts)
        index = 0
        for prompt in prompts:
            for _ in range(request.n):
                async with aclosing(self.echo(replace(request, prompt=prompt))) as deltas:
                    async for delta in deltas:
                        yield replace(delta, index=index)
                index += 1

    async def echo(self, request: TextRequest) -> AsyncGenerator[Delta, None]:
        said = request.prompt if isinstance(request.prompt, str) else json.dumps(request.prompt)
        mistakes = {
            "long": PromptTooLongError(9, 9, 10, "prompt"),
            "full": OverloadedError("full"),
            "bug": ValueError("secret"),
        }
        if said in mistakes:
            raise mistakes[said]
        words = said.split(" ")
        try:
            for number, word in enumerate(words, start=1):
                if word == "break":
                    raise RequestError("the replica died", code="model_unavailable", status=503)
                if word == "wait":
                    await asyncio.sleep(60)
                logprobs = (TokenLogprob(word, word.encode(), -0.5, number - 1),) if request.sampling.logprobs else ()
                yield Delta(word, "stop" if number == len(words) else None, 2, number, logprobs=logprobs)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise


Call = Callable[..., httpx.Response]


@pytest.fixture
def call() -> Call:
    return partial(send, create_app(EchoAndSums(), body_limit=LIMIT))


def complete(call: Call, **changes) -> httpx.Response:
    return call("POST", "/v1/completions", json={"model": "echo", "prompt": "a b"} | changes)


def chat(call: Call, **changes) -> httpx.Response:
    return call("POST", "/v1/chat/completions", json={"model": "echo", "messages": [say("hi")]} | changes)


def say(content, role: str = "user", **more) -> dict:
    return {"role": role, "content": content, **more}


SCHEMA = {"name": "a", "schema": {"type": "object"}}
SCHEMA_PARAM, CALL_PARAM = "response_format.json_schema.schema", "messages[0].tool_calls[0]"
MISSING = "missing_required_parameter"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def events(response: httpx.Response) -> list:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


# --- OpenAI: answers


def test_models_are_listed_and_described(call: Call) -> None:
    listed = call("GET", "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["echo"]  # models of this API
    assert call("GET", "/v1/models/echo").json() == listed["data"][0]
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


# --- OpenAI: mistakes

UNSUPPORTED = {
    "top_logprobs": 3,
    "tool_choice": "required",
    "functions": [{}],
    "modalities": ["audio"],
    "reasoning_effort": "high",
}


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED.items())
def test_unsupported_parameters_of_a_chat_are_refused_by_name(call: Call, name: str, value) -> None:
    response = chat(call, **{name: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")


@pytest.mark.parametrize(("name", "value"), {"logprobs": 2, "best_of": 3, "echo": True, "suffix": "x"}.items())
def test_unsupported_parameters_of_a_completion_are_refused_by_name(call: Call, name: str, value) -> None:
    error = complete(call, n=2, **{name: value}).json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"max_tokenz": 5}, "max_tokenz", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [say(5)]}, "messages[0].content", "invalid_type"),
        ({"messages": [say("x", role="robot")]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [say("x"), say([{"type": "image_url"}])]}, "messages[1].content[0].type", "invalid_value"),
        ({"model": 5}, "model", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": "1"}, "presence_penalty", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"²": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": [5]}, "logit_bias", "invalid_type"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "json_schema": SCHEMA}}, "response_format.json_schema", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, SCHEMA_PARAM, MISSING),
        ({"tools": [{"type": "function"}]}, "tools[0].function", MISSING),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "invalid_value"),
        ({"messages": [say(None, "assistant", tool_calls=[CALL | {"id": 5}])]}, f"{CALL_PARAM}.id", "invalid_type"),
        (
            {"messages": [say(None, "assistant", tool_calls=[CALL | {"function": {"name": "f", "arguments": "["}}])]},
            f"{CALL_PARAM}.function.arguments",
            "invalid_value",
        ),
        ({"messages": [say(None, "assistant")]}, "messages[0].content", "invalid_type"),
        ({"model": None}, "model", "invalid_type"),
    ],
)
def test_a_wrong_field_is_named_with_a_code(call: Call, changes: dict, param: str, code: str) -> None:
    response = chat(call, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": "5"}, "Invalid type for 'max_tokens': expected an integer, but got a string instead."),
        ({"max_tokens": 1.5}, "Invalid type for 'max_tokens': expected an integer, but got a number instead."),
        ({"temperature": True}, "Invalid type for 'temperature': expected a number, but got a boolean instead."),
        ({"stream": []}, "Invalid type for 'stream': expected a boolean, but got an array instead."),
        ({"stop": 5}, "Invalid type for 'stop': expected a string or an array, but got an integer instead."),
        ({"stop": [1]}, "Invalid type for 'stop[0]': expected a string, but got an integer instead."),
        ({"messages": ["hi"]}, "Invalid type for 'messages[0]': expected an object, but got a string instead."),
        (
            {"messages": [say(None)]},
            "Invalid type for 'messages[0].content': expected a string or an array, but got null ",
        ),
        (
            {"max_tokens": 0},
            "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            {"temperature": 2.1},
            "Invalid 'temperature': number above maximum value. Expected a value <= 2, but got 2.1 ",
        ),
        ({"seed": 2**63}, f"Invalid 'seed': integer above maximum value. Expected a value < {2**63}, but got "),
        (
            {"stop": list("abcde")},
            "Invalid 'stop': array too long. Expected an array with maximum length 4, but got one ",
        ),
        (
            {"messages": []},
            "Invalid 'messages': array too short. Expected an array with minimum length 1, but got one ",
        ),
        (
            {"messages": [say("x", role="robot")]},
            "Invalid value for 'messages[0].role': \"robot\". Supported values are: 'system', 'developer', 'user', ",
        ),
        ({"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'."),
        ({"max_tokenz": 5}, "Unknown parameter: 'max_tokenz'."),
        ({"functions": [{}]}, "'functions' is not supported at this path"),
        (
            {"messages": [say("x"), say("y", role="tool")]},
            "Missing required parameter: 'messages[1].tool_call_id'.",
        ),
        (
            {"messages": [say("x", tool_call_id="1")]},
            "'messages[0].tool_call_id' is only allowed in a message of role 'tool'.",
        ),
        ({"response_format": {"type": "json_schema"}}, "Missing required parameter: 'response_format.json_schema'."),
        ({"logit_bias": {"x": 1}}, "Invalid 'logit_bias': "),
    ],
)
def test_a_wrong_field_is_told_in_openais_words(call: Call, changes: dict, message: str) -> None:
    assert chat(call, **changes).json()["error"]["message"].startswith(message)


def test_wrong_prompts_are_refused(call: Call) -> None:
    for prompt in (5, None, [], [[]] * 33, [1, "a"], ["a", 1], [["a"]], {"a": 1}):
        response = complete(call, prompt=prompt)
        assert response.status_code == 400, prompt
        assert response.json()["error"]["param"].startswith("prompt")


def test_missing_and_unknown_models_have_openais_codes(call: Call) -> None:
    missing = call("POST", "/v1/completions", json={"prompt": "x"})
    assert missing.json()["error"]["code"] == "missing_required_parameter"
    for unknown in (complete(call, model="nope"), call("GET", "/v1/models/nope")):
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
    other = complete(call, model="sums")
    assert other.status_code == 400
    assert "/v1/models/sums/predict" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model": "echo", "prompt": NaN}', b"\xff\xfe", b"null", b"[1]", b'"x"', b"[" * 1500]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v2/models/sums/infer"])
def test_broken_json_is_refused_in_the_shape_of_each_api(call: Call, path: str, body: bytes) -> None:
    response = call("POST", path, content=body)
    assert response.status_code == 400
    shape = response.json()["error"]
    assert isinstance(shape, str) if path.startswith("/v2") else shape["type"] == "invalid_request_error"


def test_overload_says_when_to_retry(call: Call) -> None:
    response = complete(call, prompt="full")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_bug_is_a_500_without_details(call: Call) -> None:
    response = call(
        "POST", "/v1/completions", json={"model": "echo", "prompt": "bug"}, headers={"x-request-id": "req-7"}
    )
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "req-7" in error["message"]
    assert "secret" not in error["message"]


# --- the guard


async def in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 100):
        yield b" " * 100


@pytest.mark.parametrize("path", ["/v1/completions", "/v2/models/sums/infer"])
def test_a_body_over_the_limit_is_refused(call: Call, path: str) -> None:
    for content in (b" " * (LIMIT + 1), in_pieces(LIMIT + 100)):  # with and without Content-Length
        response = call("POST", path, content=content)
        assert response.status_code == 413
        assert "2,000 bytes" in str(response.json()["error"])
    assert call("POST", path, content=in_pieces(LIMIT)).status_code == 400  # within it: merely no JSON


@pytest.mark.parametrize("pieces", [50, None])
def test_a_large_body_is_refused_at_the_limit_and_dropped(pieces: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "DRAIN_SECONDS", 0.1)
    app = create_app(EchoAndSums(), body_limit=LIMIT)
    read, seen = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 1000, "more_body": read != pieces}

    async def send(message: MutableMapping[str, Any]) -> None:
        seen.append((message, read))

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    (start, at_start), (body, at_body), (end, _) = seen
    assert (start["status"], at_start) == (413, LIMIT // 1000 + 1)
    assert (at_body, body["more_body"]) == (at_start, True)  # the client has the whole response
    assert int(dict(start["headers"])[b"content-length"]) == len(body["body"])
    assert end == {"type": "http.response.body", "body": b""}
    assert read == pieces or (pieces is None and read > at_start)  # and what came after it


@pytest.mark.parametrize("path", ["/v1/completions", "/v2/models/sums/infer"])
def test_a_body_that_does_not_arrive_is_refused(call: Call, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "BODY_SECONDS", 0.2)

    async def drops() -> AsyncIterator[bytes]:
        for _ in range(100):  # something comes all the time
            yield b" "
            await asyncio.sleep(0.05)

    response = call("POST", path, content=drops())
    assert (response.status_code, response.headers["connection"]) == (408, "close")
    assert "0.2 s" in response.text


def test_memory_of_a_refused_request_is_freed_at_once() -> None:
    class Held:
        pass

    class Refusing(InProcess):
        async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
            held = Held()
            kept.append(weakref.ref(held))
            try:
                raise ValueError
            except ValueError as error:
                raise RequestError("no") from error

    async def ask() -> None:
        transport = httpx.ASGITransport(create_app(Refusing(route("sums", "predict")), body_limit=LIMIT))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.post("/v2/models/sums/infer", json={})).status_code == 400
        assert kept[0]() is None

    kept: list[weakref.ref[Held]] = []
    gc.disable()
    try:
        asyncio.run(ask())
    finally:
        gc.enable()


def test_an_answer_may_take_longer_than_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "BODY_SECONDS", 0.1)

    class Slow(InProcess):
        async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
            for number in range(3):
                await asyncio.sleep(0.1)
                yield Delta("x", "stop" if number == 2 else None, 1, number + 1)

    app = create_app(Slow(route("echo", "generate")), body_limit=LIMIT)
    answer = send(app, "POST", "/v1/completions", json={"model": "echo", "prompt": "a", "stream": True})
    assert events(answer)[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v2/models/sums/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/models/a/b", 404),
        ("GET", "/v2/x", 404),
        ("POST", "/v2/models/sums/versions/3/x", 404),
    ],
)
def test_wrong_methods_and_paths_are_refused(call: Call, method: str, path: str, status: int) -> None:
    response = call(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert isinstance(error, str) if path.startswith("/v2") else error["message"]
    if status == 405:
        assert response.headers["allow"]


# --- Open Inference Protocol


def test_metadata_and_readiness_follow_the_open_inference_protocol(call: Call) -> None:
    server = call("GET", "/v2").json()
    assert (server["name"], server["extensions"]) == ("maas_ray", ["binary_tensor_data"])
    assert call("GET", "/v2/health/live").json() == {"live": True}
    assert call("GET", "/v2/health/ready").status_code == 503  # `echo` is not
    for path in ("/v2/models/sums", "/v2/models/sums/versions/3"):
        body = call("GET", path).json()
        assert (body["name"], body["versions"]) == ("sums", ["3"])
        assert body["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        assert call("GET", f"{path}/ready").json() == {"name": "sums", "ready": True}
    assert call("GET", "/v2/models/echo/ready").status_code == 503
    for path in ("/v2/models/nope", "/v2/models/sums/versions/4", "/v2/models/sums/versions/4/ready"):
        assert call("GET", path).status_code == 404


def tensors(**changes) -> dict:
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]} | changes
    return {"inputs": [x, {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["é", ""]}]}


def infer(call: Call, body: dict, tail: str = "") -> httpx.Response:
    return call("POST", f"/v2/models/sums{tail}/infer", json=body)


def test_infer_answers_with_json_tensors(call: Call) -> None:
    for data in ([1, 2.5, 3, 4], [[1, 2.5], [3, 4]]):
        body = infer(call, tensors(data=data) | {"id": "42"}, "/versions/3").json()
        assert body == {
            "model_name": "sums",
            "model_version": "3",
            "id": "42",
            "outputs": [
                {"name": "sum", "datatype": "FP32", "shape": [2], "data": [3.5, 7.0]},
                {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
            ],
        }
    chosen = infer(call, tensors() | {"outputs": [{"name": "word"}]}).json()
    assert [output["name"] for output in chosen["outputs"]] == ["word"]
    assert "id" not in chosen


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({}, "invalid_value", "'inputs'"),
        ({"inputs": []}, "invalid_value", "'inputs'"),
        ([], "invalid_value", "an array"),
        (tensors(datatype="FP64"), "tensor_datatype", "inputs[0].datatype: x is FP32, not 'FP64'"),
        (tensors(shape=[2]), "tensor_shape", "inputs[0].shape: x has shape [-1, 2] (-1: any), not [2]"),
        (tensors(shape=[2, 3]), "tensor_shape", "not [2, 3]"),
        (tensors(shape=[2, -2]), "invalid_value", "inputs[0].shape[1]"),
        (tensors(shape=[10**12, 2]), "tensor_shape", "2000000000000"),
        (tensors(shape=[0, 2], data=[]), "rows_mismatch", "x 0, word 2"),
        (tensors(shape=[1, 2], data=[1, 2]), "rows_mismatch", "x 1, word 2"),
        (tensors(data=[1, 2, 3]), "tensor_shape", "inputs[0]: 3 elements, but shape [2, 2] needs 4"),
        (tensors(data=[[1, 2, 3, 4]]), "tensor_shape", "inputs[0].data: nested as [1, 4]"),
        (tensors(data=[[1, 2], [3]]), "tensor_shape", "inputs[0].data"),
        (tensors(data=[1, 2, 3, "4"]), "invalid_type", "FP32"),
        (tensors(data=[1, 2, 3, None]), "invalid_type", "FP32"),
        (tensors(data=[1, 2, 3, 1e300]), "out_of_range", "FP32"),
        (tensors(data=[1, 2, 3, {"a": 1}]), "invalid_type", "FP32"),
        (tensors(name="y"), "unknown_tensor", "inputs[0]: 'y'"),
        (tensors(extra=1), "invalid_value", "inputs[0].extra"),
        (tensors(parameters={"binary_data_size": 5}), "tensor_data", "inputs[0]"),
        (tensors(parameters={"classification": 5}), "invalid_value", "inputs[0].parameters.classification"),
        (tensors() | {"parameters": {"priority": 5}}, "unknown_parameter", "parameters.priority"),
        (tensors() | {"outputs": [{"name": "z"}]}, "unknown_tensor", "outputs: 'z'"),
        (tensors() | {"id": 5}, "invalid_value", "'id'"),
        ({"inputs": tensors()["inputs"][:1]}, "missing_required_parameter", "word"),
        ({"inputs": tensors()["inputs"] * 2}, "duplicate_tensor", "inputs[2]: the input 'x'"),
    ],
)
def test_wrong_tensors_are_named(call: Call, body: dict, code: str, named: str) -> None:
    with raises(RequestError, code, named) as caught:
        parse_infer(InferBody(json.dumps(body).encode()), INPUTS, OUTPUTS)
    response = infer(call, body)
    assert (response.status_code, response.json()) == (400, {"error": caught.value.message})


@pytest.mark.parametrize(
    ("datatype", "data", "fine"),
    [
        ("UINT8", [0, 255], True),
        ("UINT8", [256], False),
        ("UINT8", [-1], False),
        ("UINT8", [1.0], False),
        ("UINT8", [True], False),
        ("INT64", [2**63 - 1, -(2**63)], True),
        ("INT64", [2**63], False),
        ("UINT64", [2**64 - 1], True),
        ("UINT64", [2**64], False),
        ("BOOL", [True, False], True),
        ("BOOL", [1], False),
        ("FP16", [65504], True),
        ("FP16", [1e6], False),
        ("BYTES", ["a"], True),
        ("BYTES", [1], False),
    ],
)
def test_each_datatype_accepts_only_its_own_values(datatype: str, data: list, fine: bool) -> None:
    spec = (TensorSpec("x", datatype, (-1,)),)
    body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [len(data)], "data": data}]})
    if fine:
        assert parse_infer(InferBody(body.encode()), spec, spec).inputs["x"].tolist() == np.array(data).tolist()
    else:
        with pytest.raises(RequestError):
            parse_infer(InferBody(body.encode()), spec, spec)


FLOATS, WORDS = np.array([[1, 2.5], [3, np.nan]], "<f4").tobytes(), b"\x02\0\0\0\xc3\xa9\0\0\0\0"


def infer_binary(
    call: Call, floats: bytes = FLOATS, words: bytes = WORDS, rest: bytes = b"", **changes
) -> httpx.Response:
    """`x` and `word` behind the JSON document. `changes`: sizes, parameters or the header told instead."""
    sizes = {"x": len(floats), "word": len(words)} | changes.pop("sizes", {})
    document = tensors() | {"parameters": {"binary_data_output": True}} | changes.pop("document", {})
    for tensor in document["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": sizes[tensor["name"]]}
    head = json.dumps(document).encode()
    headers = {LENGTH_HEADER: str(len(head))} | changes.pop("headers", {})
    return call("POST", "/v2/models/sums/infer", content=head + floats + words + rest, headers=headers)


def test_tensors_travel_as_bytes_when_requested(call: Call) -> None:
    response = infer_binary(call)
    length = int(response.headers[LENGTH_HEADER])
    assert response.headers["content-type"] == "application/octet-stream"
    document = json.loads(response.content[:length])
    assert [tensor["parameters"] for tensor in document["outputs"]] == [
        {"binary_data_size": 8},
        {"binary_data_size": 10},
    ]
    np.testing.assert_array_equal(np.frombuffer(response.content[length : length + 8], "<f4"), [3.5, np.nan])
    assert response.content[length + 8 :] == WORDS


def test_nan_is_refused_in_json_outputs(call: Call) -> None:
    outputs = [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "word"}]
    response = infer_binary(call, document={"outputs": outputs})
    assert response.status_code == 400
    assert "binary_data" in response.json()["error"]
    mixed = infer_binary(call, np.ones(4, "<f4").tobytes(), document={"outputs": outputs})
    document = json.loads(mixed.content[: int(mixed.headers[LENGTH_HEADER])])
    assert document["outputs"][0]["data"] == [2, 2]
    assert mixed.content.endswith(WORDS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"headers": {LENGTH_HEADER: "100000"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "9" * 5000}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "-1"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "1e2"}}, LENGTH_HEADER),
        ({"headers": {LENGTH_HEADER: "0"}}, "JSON"),
        ({"headers": {LENGTH_HEADER: "20"}}, "JSON"),
        ({"sizes": {"x": 2**62}}, "only 26 bytes are left"),
        ({"sizes": {"word": 11}}, "only 10 bytes are left"),
        ({"sizes": {"word": 10**30}}, "inputs[1].parameters.binary_data_size"),
        ({"sizes": {"word": -1}}, "inputs[1].parameters.binary_data_size"),
        ({"sizes": {"x": 15}}, "15 bytes are not a multiple of 4, the size of FP32"),
        ({"sizes": {"x": 12}}, "3 elements, but shape [2, 2] needs 4"),
        ({"rest": b"!"}, "last 1 bytes"),
        ({"words": b"\xff\xff\xff\xff"}, "string at byte 0"),
        ({"words": b"\0\0\0\0\0\0"}, "string at byte 4"),
        ({"words": b"\1\0\0\0\xff\0\0\0\0"}, "string at byte 0 is not UTF-8"),
        ({"words": b"\0\0\0\0" * 3}, "3 elements, but shape [2] needs 2"),
    ],
)
def test_wrong_sizes_are_named(call: Call, changes: dict, named: str) -> None:
    response = infer_binary(call, **changes)
    assert response.status_code == 400
    assert named in response.json()["error"]


def test_a_shape_with_thousands_of_digits_is_refused() -> None:
    body = json.dumps(tensors(shape=[9 * 10**4298, 2])).encode()  # times two, it has no text in Python
    with raises(RequestError, "invalid_value", "inputs[0].shape[0]"):
        parse_infer(InferBody(body), INPUTS, OUTPUTS)


def test_a_long_string_among_numbers_takes_little_memory() -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [10_001], "data": ["a" * 10_000, *[0] * 10_000]}
    spec = (TensorSpec("x", "FP32", (-1,)),)
    tracemalloc.start()
    try:
        for data in (x["data"], [x["data"]]):
            with raises(RequestError, "invalid_type", "FP32"):
                parse_infer(InferBody(json.dumps({"inputs": [x | {"data": data}]}).encode()), spec, spec)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # as an array of strings it would be 400 MB
    finally:
        tracemalloc.stop()


def test_any_byte_but_0_is_true() -> None:
    spec = (TensorSpec("x", "BOOL", (-1,)),)
    tensor = {"name": "x", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}
    head = json.dumps({"inputs": [tensor]}).encode()
    found = parse_infer(InferBody(head + b"\0\1\xff", len(head)), spec, spec).inputs["x"]
    assert found.tobytes() == b"\0\1\1"


def test_a_routing_table_survives_json() -> None:
    table = (route("b", "predict"), route("a", "generate"))
    config = json.loads(json.dumps(to_config(table)))
    assert from_config(config) == (table[1], table[0])
    assert to_config(table[::-1]) == config


# --- the caller


@pytest.mark.parametrize(
    ("method", "path", "body", "calls"),
    [
        ("POST", "/v1/completions", {"model": "echo", "prompt": "a"}, {"route", "complete", "stream"}),
        ("POST", "/v1/completions", {"model": "echo", "prompt": "a", "stream": True}, {"route", "stream"}),
        ("GET", "/v1/models", None, {"routes"}),
        ("GET", "/v1/models/echo", None, {"route"}),
        ("GET", "/v2/models/sums", None, {"route"}),
        ("GET", "/v2/health/ready", None, {"routes"}),
        ("GET", "/openapi.json", None, {"routes"}),
        ("POST", "/v2/models/sums/infer", tensors(), {"route", "infer"}),
    ],
)
def test_the_caller_is_determined_once_and_goes_with_every_call(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: dict | None, calls: set[str]
) -> None:
    anna, headers = Caller(id="anna", kind="test"), []

    def authenticate(of_request) -> Caller:
        headers.append(of_request["x-user"])
        return anna

    monkeypatch.setattr(middleware, "authenticate", authenticate)
    models = EchoAndSums()
    app = create_app(models, body_limit=LIMIT)
    assert send(app, method, path, json=body, headers={"X-User": "anna"}).status_code in (200, 503)
    assert headers == ["anna"]
    assert models.callers == dict.fromkeys(calls, anna)


def test_a_caller_who_is_not_admitted_gets_the_api_s_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def authenticate(headers) -> Caller:
        raise RequestError("The API key is not valid.", code="invalid_api_key", status=401)

    monkeypatch.setattr(middleware, "authenticate", authenticate)
    app = create_app(EchoAndSums(), body_limit=LIMIT)
    for path in ("/v1/models", "/v2"):
        response = send(app, "GET", path)
        assert response.status_code == 401
        error = response.json()["error"]
        assert error if path == "/v2" else (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
