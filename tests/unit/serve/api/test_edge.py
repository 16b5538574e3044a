"""The edge, which is the same for every API: ids of requests, limits of bodies, encodings, browsers."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from maas_ray.errors import SpecError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.spec import GatewayArgs
from tests.support.echo import EchoAndSums
from tests.support.errors import raises
from tests.support.models import InProcess, route, send

LIMIT = 2000


def ask(method: str, path: str, **content) -> httpx.Response:
    return send(create_app(InProcess(route("sums", "predict")), body_limit=LIMIT), method, path, **content)


def test_a_clients_own_request_id_comes_back() -> None:
    for path, status in (("/v2", 200), ("/v2/nothing", 404)):
        answer = ask("GET", path, headers={"x-client-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-client-request-id"]) == (status, "mine")
    assert len(ask("GET", "/v2", headers={"x-client-request-id": "x" * 5000}).headers["x-client-request-id"]) == 200
    assert "x-client-request-id" not in ask("GET", "/v2").headers


# --- compressed bodies


def infer(content: bytes, encoding: str, **headers: str) -> httpx.Response:
    return ask("POST", "/v2/models/sums/infer", content=content, headers={"content-encoding": encoding, **headers})


BODY = json.dumps(
    {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
            {"name": "word", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        ]
    }
).encode()
RAW_DEFLATE = zlib.compressobj(wbits=-15)


def length(value: object) -> str | None:
    """The id of a body in the names of tests, which must not change with the time that gzip writes into its header."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),  # RFC 1952 allows several members
        ("deflate", zlib.compress(BODY)),
        ("deflate", RAW_DEFLATE.compress(BODY) + RAW_DEFLATE.flush()),
        ("identity", BODY),
    ],
    ids=length,
)
def test_compressed_bodies_are_read(encoding: str, content: bytes) -> None:
    answer = infer(content, encoding)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [3]


@pytest.mark.parametrize(
    ("encoding", "content", "status"),
    [
        ("br", BODY, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415),
        ("gzip", BODY, 400),
        ("gzip", gzip.compress(BODY)[:-9], 400),
        ("gzip", gzip.compress(BODY) + b"x", 400),
        ("deflate", zlib.compress(BODY) + b"x", 400),
        ("deflate", zlib.compress(BODY)[:9], 400),
        ("gzip", gzip.compress(bytes(LIMIT)), 400),  # the limit, which is no JSON
        ("gzip", gzip.compress(bytes(LIMIT + 1)), 413),
        ("gzip", gzip.compress(bytes(LIMIT)) + gzip.compress(b"x"), 413),
        ("deflate", zlib.compress(bytes(LIMIT + 1)), 413),
    ],
    ids=length,
)
def test_bodies_that_do_not_decompress_within_the_limit_are_refused(encoding: str, content: bytes, status: int) -> None:
    answer = infer(content, encoding)
    assert answer.status_code == status, answer.text
    assert ("accept-encoding" in answer.headers) == (status == 415)


def test_a_bomb_is_inflated_to_the_limit_and_no_further() -> None:
    import tracemalloc

    bomb = gzip.compress(bytes(200_000_000), 9)
    app = create_app(InProcess(route("sums", "predict")), body_limit=1_000_000)
    tracemalloc.start()
    try:
        answer = send(app, "POST", "/v2/models/sums/infer", content=bomb, headers={"content-encoding": "gzip"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert peak < 5_000_000


@pytest.mark.parametrize(("accepted", "encoding"), [("gzip", "gzip"), ("deflate", "deflate"), ("gzip, br", None)])
def test_answers_to_infer_are_compressed_for_clients_that_accept_nothing_else(
    accepted: str, encoding: str | None
) -> None:
    answer = infer(BODY, "identity", **{"accept-encoding": accepted})
    assert answer.json()["outputs"][0]["data"] == [3]  # httpx decompresses
    assert answer.headers.get("content-encoding") == encoding


# --- memory


async def _held(app, size: int, count: int) -> list[httpx.Response | None]:
    """Answers to uploads that hold back their last byte; None: it is still awaited. Then they are let go."""
    let_go = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // 50_000):
            yield bytes(50_000)
        await let_go.wait()
        yield b"x"

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        sent = [
            asyncio.create_task(client.post("/v2/models/sums/infer", content=body(), headers=headers))
            for headers in [{"content-length": str(size + 1)}] * count
        ]
        done, _ = await asyncio.wait(sent, timeout=0.3)
        answers = [task.result() if task in done else None for task in sent]
        small = await client.post("/v1/completions", json={"model": "echo", "prompt": "a"})
        assert small.status_code == 200
        let_go.set()
        await asyncio.wait(sent)
        later = await client.post("/v1/embeddings", content=bytes(size))
        assert later.status_code == 400  # it has its place again
    return answers


@pytest.mark.parametrize("size", [300_000, 950_000])
def test_large_bodies_share_a_budget_and_small_ones_need_none(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from maas_ray.serve.api import incoming

    monkeypatch.setattr(incoming, "DRAIN_SECONDS", 0.1)
    budget = 2_000_000
    app = create_app(EchoAndSums(), body_limit=1_000_000, budget=budget)
    answers = asyncio.run(_held(app, size, 20))
    refused = [answer for answer in answers if answer is not None]
    assert 20 - len(refused) == budget // (size + 1 - 65_536)
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"


def test_a_large_body_is_parsed_beside_the_loop_and_answered_alike() -> None:
    app = create_app(EchoAndSums(), body_limit=2_000_000)
    text = "a" * 400_000
    answer = send(app, "POST", "/v1/completions", json={"model": "echo", "prompt": text})
    assert answer.json()["choices"][0]["text"] == text
    asked = {"model": "echo", "messages": [{"role": "user", "content": text}], "n": 0}
    refused = send(app, "POST", "/v1/chat/completions", json=asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    broken = send(app, "POST", "/v1/embeddings", content=b"[" * 400_000)
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")


def test_texts_have_a_limit_of_their_own() -> None:
    app = create_app(EchoAndSums(), body_limit=LIMIT, text_body_limit=100)
    for path, status in (("/v1/chat/completions", 413), ("/v1/completions", 413), ("/v1/embeddings", 400)):
        assert send(app, "POST", path, content=b"x" * 101).status_code == status


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1025}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}] * 129}, "tools"),
    ],
)
def test_chats_have_a_limit_of_parts(body: dict, param: str) -> None:
    app = create_app(EchoAndSums(), body_limit=1_000_000)
    answer = send(app, "POST", "/v1/chat/completions", json={"model": "echo", **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    assert answer.json()["error"]["param"].startswith(param)


# --- browsers

PAGE = "https://app.example.com"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v2/models/sums/infer", "/v1/models"])
def test_pages_of_the_origins_may_call_and_read_errors(path: str) -> None:
    app = create_app(EchoAndSums(), body_limit=LIMIT, origins=(PAGE,))
    # OpenAI's client adds some ten headers about itself, which differ from version to version.
    named = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": named}
    preflight = send(app, "OPTIONS", path, headers={"origin": PAGE, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert preflight.headers["access-control-allow-headers"] == named
    refused = send(app, "POST", path, content=b"{", headers={"origin": PAGE})
    assert refused.status_code in (400, 405)
    assert refused.headers["access-control-allow-origin"] == PAGE
    for header in ("x-request-id", "retry-after", "x-should-retry"):  # that a client needs
        assert header in refused.headers["access-control-expose-headers"]
    stranger = send(app, "OPTIONS", path, headers={"origin": "https://other.example", **asked})
    assert "access-control-allow-origin" not in stranger.headers


def test_streams_reach_pages_and_without_origins_no_page_is_allowed() -> None:
    asked = {"model": "echo", "prompt": "a b", "stream": True}
    for origins, allowed in (((PAGE,), PAGE), (("*",), "*"), ((), None)):
        app = create_app(EchoAndSums(), body_limit=LIMIT, origins=origins)
        answer = send(app, "POST", "/v1/completions", json=asked, headers={"origin": PAGE})
        assert answer.text.endswith("data: [DONE]\n\n")
        assert answer.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://a.example/x", "", "null"])
def test_an_origin_is_written_as_browsers_send_it(origin: str) -> None:
    with raises(SpecError, "invalid_origin", repr(origin)):
        GatewayArgs.parse({"cors_origins": [origin]}, source="a file")


# --- KServe's first protocol


def test_kserves_verb_is_predict() -> None:
    for path in ("/v1/models/none:predict", "/v1/models/none/predict"):
        assert ask("POST", path, json={"instances": []}).json()["error"]["code"] == "model_not_found"
    assert ask("GET", "/v1/models/sums:predict").status_code == 404
    assert ask("GET", "/v1/models/sums").json() == {"name": "sums", "ready": True}


# --- timeouts


def test_a_timeout_tells_openais_clients_not_to_try_again() -> None:
    class Slow(EchoAndSums):
        async def complete(self, route, request, *, caller):
            raise refusals.timed_out(route.name, 1)

    from maas_ray.serve.api import refusals

    calls = 0

    async def asked() -> None:
        nonlocal calls
        from openai import AsyncOpenAI, InternalServerError

        app = create_app(Slow(), body_limit=LIMIT)

        async def counted(scope, receive, send) -> None:
            nonlocal calls
            calls += 1
            await app(scope, receive, send)

        http = httpx.AsyncClient(transport=httpx.ASGITransport(counted))
        async with AsyncOpenAI(base_url="http://test/v1", api_key="x", http_client=http) as client:
            with pytest.raises(InternalServerError) as caught:
                await client.completions.create(model="echo", prompt="a")
        assert caught.value.status_code == 504

    asyncio.run(asked())
    assert calls == 1
