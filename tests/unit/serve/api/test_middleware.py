"""Bodies over the limit or too slow are refused, memory is freed, and each call has one caller."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from typing import Any

import httpx
import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api import incoming, middleware, refusals
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import Delta, TextRequest
from tests.support.echo import LIMIT, Call, EchoAndSums, events, tensors
from tests.support.models import InProcess, route, send


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
    monkeypatch.setattr(incoming, "DRAIN_SECONDS", 0.1)
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


def test_a_flood_of_refused_bodies_is_hardly_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_BEGINNING_SECONDS", 0.05)
    piece = 100_000
    app = create_app(EchoAndSums(), body_limit=LIMIT)

    async def upload(size: int, declared: str) -> int:
        """Bytes that are read of a body of this size."""
        read, statuses = 0, []

        async def receive() -> dict[str, Any]:
            nonlocal read
            await asyncio.sleep(0)
            assert statuses or not declared  # the header suffices to refuse it
            read += piece
            return {"type": "http.request", "body": bytes(piece), "more_body": read < size}

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.append(message.get("status"))

        headers = [(b"content-length", declared.encode())] if declared else []
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        assert statuses[0] == 413
        return read

    async def uploads() -> list[int]:
        return await asyncio.gather(*(upload(15_000_000, "15000000") for _ in range(5)), upload(15_000_000, ""))

    # 32 MB are read of bodies to their end, 256 KiB of the others. The one of unknown length has sent a piece before.
    assert asyncio.run(uploads()) == [15_000_000] * 2 + [300_000] * 3 + [400_000]
    assert asyncio.run(upload(10**9, "1000000000")) == 300_000


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


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "x" * 100_000, "prompt": "a"}),
        ("/v1/completions", {"model": "echo", "prompt": "a", "x" * 100_000: 1}),
        ("/v2/models/sums/infer", {"inputs": [{"name": "x" * 100_000, "datatype": "", "shape": [1], "data": [1]}]}),
    ],
)
def test_an_error_does_not_repeat_megabytes(path: str, body: dict[str, Any]) -> None:
    answer = send(create_app(EchoAndSums(), body_limit=1_000_000), "POST", path, json=body)
    assert answer.status_code in (400, 404)
    assert 1000 < len(answer.content) < 10_000
