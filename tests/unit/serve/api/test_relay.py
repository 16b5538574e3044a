"""Requests that the gateway passes on as bytes: to which replica, when again, and what clients see."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App
from maas_ray.serve.api.relay import RELAY_HEADER, Asked, Relay
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from tests.support.echo import LIMIT, EchoAndSums
from tests.support.http_replicas import Answer, Scripted, Upstream, answer, dies, scripted, stream
from tests.support.models import route

INFER = "/v2/models/m/infer"
BODY = b'{"inputs": []}'
FULL = answer("429 Too Many Requests", b"Request dropped due to backpressure", marked=False)
REFUSED = Upstream("http://127.0.0.1:9")  # nobody listens there


class Gateway:
    """A gateway with one route, and these replicas in their order."""

    def __init__(self, upstreams: Sequence[Upstream], timeout_s: float = 5) -> None:
        self._upstreams, self._route = upstreams, route("m", "predict", timeout_s=timeout_s)
        self.asked: list[Asked] = []
        self.relay = Relay(self._found, self._choose)
        self.app: App = create_app(EchoAndSums(), body_limit=LIMIT, relay=self.relay)

    def _found(self, asked: Asked, caller: Caller) -> Route:
        self.asked.append(asked)
        return self._route

    def _choose(self, route: Route, caller: Caller, tried: set[str]) -> Upstream | None:
        return next((one for one in self._upstreams if one.url not in tried), None)


async def ask(gateway: Gateway, path: str = INFER, content: bytes = BODY, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(gateway.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, content=content, **options)


def tried(
    *answers: Answer, path: str = INFER, first: Sequence[Upstream] = (), timeout_s: float = 5, **options: Any
) -> tuple[httpx.Response, list[Scripted]]:
    """The client's answer, and replicas that had one answer each."""

    async def once() -> tuple[httpx.Response, list[Scripted]]:
        async with AsyncExitStack() as stack:
            pairs = [await stack.enter_async_context(scripted(one)) for one in answers]
            gateway = Gateway([*first, *(upstream for _, upstream in pairs)], timeout_s)
            response = await ask(gateway, path, **options)
            await asyncio.sleep(0.05)
            assert [upstream.in_flight for _, upstream in pairs] == [0] * len(pairs)
            await gateway.relay.close()
            return response, [server for server, _ in pairs]

    return asyncio.run(once())


def test_a_request_and_its_answer_are_passed_on_as_they_are() -> None:
    headers = {"content-type": "application/x", "accept-encoding": "gzip", "cookie": "a", "x-request-id": "7"}
    response, (replica,) = tried(
        answer("200 OK", b"\x00\xff", "Content-Type: application/y", "X-Model-Version: m/3", "Date: today"),
        headers=headers,
        path="/v2/models/a%20b%C3%A9/infer",
    )
    head, body = replica.asked[0]
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    assert head.startswith("POST /v2/models/m/v2/models/a%20b%C3%A9/infer HTTP/1.1")  # `/v2/models/m` leads to it
    assert body == BODY
    assert lines.pop("host").startswith("127.0.0.1:")
    assert lines == {
        "content-type": "application/x",
        "accept-encoding": "gzip",
        "x-request-id": "7",
        RELAY_HEADER: "s3cret",
        "content-length": str(len(BODY)),
    }
    assert response.status_code == 200
    assert response.content == b"\x00\xff"
    assert dict(response.headers) == {
        "content-type": "application/y",
        "content-length": "2",
        "x-model-version": "m/3",
    }


def test_the_pieces_of_a_stream_come_as_they_are_made() -> None:
    async def run() -> list[bytes]:
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"model": "m"}', "more_body": False}

        async with scripted(stream(b"data: 1\n\n", 0.05, b"data: 2\n\n", b"data: 3\n\n")) as (_, upstream):
            gateway = Gateway([upstream])
            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
            await gateway.app(scope, receive, send)
            await gateway.relay.close()
        return sent

    sent = asyncio.run(run())
    assert sent[:2] == [b"", b"data: 1\n\n"]
    assert b"".join(sent[2:]) == b"data: 2\n\ndata: 3\n\n"


@pytest.mark.parametrize(
    ("path", "content", "asked"),
    [
        ("/v1/chat/completions", b'{"model": "m:x", "messages": []}', Asked("m:x")),
        ("/v1/completions", b'{"prompt": {"model": "no"}, "model": "m"}', Asked("m")),
        ("/v1/embeddings", b'{"model": "m", "input": "x"}', Asked("m")),
        ("/v1/models/m/predict", b"{}", Asked("m")),
        ("/v1/models/m/versions/3/predict", b"{}", Asked("m", "3")),
        ("/v1/models/m:predict", b"{}", Asked("m")),
        ("/v2/models/m/versions/3/infer", b"{}", Asked("m", "3")),
    ],
)
def test_the_gateway_reads_which_model_is_asked(path: str, content: bytes, asked: Asked) -> None:
    async def run() -> None:
        async with scripted(answer("200 OK", b"{}")) as (_, upstream):
            gateway = Gateway([upstream])
            assert (await ask(gateway, path, content)).content == b"{}"
            assert gateway.asked == [asked]
            await gateway.relay.close()

    asyncio.run(run())


def test_a_form_names_its_model_too() -> None:
    response, (replica,) = tried(
        answer("200 OK", b"{}"),
        path="/v1/audio/transcriptions",
        content=None,
        data={"model": "m"},
        files={"file": ("a.wav", b"RIFF")},
    )
    assert response.content == b"{}"
    assert b"RIFF" in replica.asked[0][1]


@pytest.mark.parametrize("content", [b'{"prompt": "x"}', b'{"model": 3}', b"[]", b"{"])
def test_a_request_without_a_model_gets_the_error_of_the_api(content: bytes) -> None:
    response, (replica,) = tried(answer("200 OK", b"{}"), path="/v1/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert replica.asked == []


def test_a_request_whose_replica_dies_is_sent_to_one_more() -> None:
    response, replicas = tried(dies, answer("200 OK", b"{}"))
    assert response.content == b"{}"
    assert [len(replica.asked) for replica in replicas] == [1, 1]
    response, replicas = tried(dies, dies, answer("200 OK", b"{}"))
    assert (response.status_code, response.json()["error"]) == (503, response.json()["error"])
    assert [len(replica.asked) for replica in replicas] == [1, 1, 0]


def test_a_replica_that_dies_amid_an_answer_of_known_length_counts_as_dead_too() -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nx-maas-relay: 1\r\n\r\nhalf")
        await writer.drain()

    response, _ = tried(half, answer("200 OK", b"{}"))
    assert response.content == b"{}"


def test_replicas_that_cannot_be_reached_do_not_count_as_dead() -> None:
    refused = [Upstream(f"http://127.0.0.1:{port}") for port in (9, 7, 1)]
    response, _ = tried(dies, answer("200 OK", b"{}"), first=refused)
    assert response.content == b"{}"
    assert [upstream.avoided for upstream in refused] == [1, 1, 1]


def test_a_full_replica_is_passed_over_and_only_all_of_them_refuse() -> None:
    response, _ = tried(FULL, answer("200 OK", b"{}"))
    assert response.content == b"{}"
    response, _ = tried(FULL, FULL)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert "error" in response.json()
    # The application's own refusal is the answer.
    response, _ = tried(answer("429 Too Many Requests", b"mine"), answer("200 OK", b"{}"))
    assert (response.status_code, response.content) == (429, b"mine")


@pytest.mark.parametrize("first", [[], [REFUSED]])
def test_the_endpoint_answers_what_no_replica_takes(first: Sequence[Upstream]) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    body["inputs"].append({"name": "word", "shape": [1], "datatype": "BYTES", "data": ["w"]})
    path = "/v2/models/sums/infer"
    expected = tried(path=path, content=None, json=body)[0]
    assert expected.status_code == 200
    moved = answer("404 Not Found", b"Path not found", marked=False)  # Serve's, while a path changes
    assert tried(moved, path=path, first=first, content=None, json=body)[0].json() == expected.json()


def test_an_answer_that_takes_too_long_ends_on_the_replica_too() -> None:
    async def waits(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    response, (replica,) = tried(waits, timeout_s=0.2)
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    assert replica.left == 1


@pytest.mark.parametrize(("late", "code"), [(stream(b"data: 1\n\n", 60.0), "timeout"), (None, "model_unavailable")])
def test_a_stream_that_ends_early_ends_with_an_error_event(late: Answer | None, code: str) -> None:
    broken = late or stream(b"data: 1\n\n", 0.05, ends=False)
    response, _ = tried(broken, path="/v1/completions", content=b'{"model": "m"}', timeout_s=0.3)
    assert response.status_code == 200
    assert response.text.startswith("data: 1\n\n")
    assert f'"code":"{code}"' in response.text
    assert response.text.endswith("\n\n")


def test_an_event_that_was_cut_is_not_passed_on() -> None:
    """Events are cut where packets end; a client could read neither half of one, nor the error behind it."""
    asked = {"path": "/v1/completions", "content": b'{"model": "m"}'}
    response, _ = tried(stream(b"data: 1\n\nda", 0.05, b"ta: 2\n\ndata: {", 0.05, ends=False), **asked)
    events = response.text.split("\n\n")
    assert events[:2] == ["data: 1", "data: 2"]
    assert json.loads(events[2].removeprefix("data: "))["error"]["code"] == "model_unavailable"
    assert events[3:] == [""]
    response, _ = tried(stream(b"da", 0.05, b"ta: 1\n", 0.05, b"\ndata: [DONE]\n\n"), **asked)
    assert response.text == "data: 1\n\ndata: [DONE]\n\n"


def test_a_client_that_leaves_ends_the_request_on_the_replica() -> None:
    async def run() -> None:
        async with scripted(stream(b"data: 1\n\n", 60.0)) as (replica, upstream):
            gateway = Gateway([upstream])
            asking = asyncio.create_task(ask(gateway, "/v1/completions", b'{"model": "m"}'))
            while not replica.asked:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert upstream.in_flight == 1
            asking.cancel()  # as Serve does
            await asyncio.wait([asking])
            await asyncio.sleep(0.05)
            assert (replica.left, upstream.in_flight) == (1, 0)
            await gateway.relay.close()

    asyncio.run(run())


def test_the_limits_of_the_gateway_hold_before_anything_is_passed_on() -> None:
    response, (replica,) = tried(answer("200 OK", b"{}"), content=b"x" * (LIMIT + 1))
    assert response.status_code == 413
    assert replica.asked == []
