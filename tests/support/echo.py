"""A model that echoes its prompt, behind a gateway's application, and requests to it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import httpx

from maas_ray.errors import OverloadedError, PromptTooLongError, RequestError
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import Delta, TextRequest, TokenLogprob
from tests.support.models import InProcess, route

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


def complete(call: Call, **changes) -> httpx.Response:
    return call("POST", "/v1/completions", json={"model": "echo", "prompt": "a b"} | changes)


def chat(call: Call, **changes) -> httpx.Response:
    return call("POST", "/v1/chat/completions", json={"model": "echo", "messages": [say("hi")]} | changes)


def say(content, role: str = "user", **more) -> dict:
    return {"role": role, "content": content, **more}


SCHEMA = {"name": "a", "schema": {"type": "object"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def events(response: httpx.Response) -> list:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def tensors(**changes) -> dict:
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]} | changes
    return {"inputs": [x, {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["é", ""]}]}
