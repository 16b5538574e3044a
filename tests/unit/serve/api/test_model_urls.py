"""A model's own URL answers the same from a gateway and from the model's own replica, in OpenAI's client too."""

import asyncio
import json
from collections.abc import AsyncGenerator
from functools import partial

import httpx
import openai
import pytest

from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App
from maas_ray.serve.caller import Caller
from maas_ray.serve.replicas.direct import SingleModel, create_single_app
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import Delta, TextRequest
from tests.support.echo import Call
from tests.support.models import InProcess, route, send

FRENCH = {"name": "fr", "version": "fr/1", "uri": "file:///fr", "digest": "cd" * 32, "created": 1}
LM = route("lm", "generate", adapters=[FRENCH])


def answer(adapter: str) -> Delta:
    return Delta(f"by {adapter}", "stop", 1, 1)


class Gateway(InProcess):
    """Has the model `lm` with an adapter, and others of similar names."""

    def __init__(self) -> None:
        similar = (route(name, "predict") for name in ("l", "lmx", "lm-2", "models", "v2"))
        super().__init__(*LM.expanded(), *similar)

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        return [answer(route.adapter.uri if route.adapter else "lm")]

    async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        yield answer(route.adapter.uri if route.adapter else "lm")


class Replica:
    """The replica of `lm`."""

    async def complete(self, request: TextRequest, caller: Caller) -> list[Delta]:
        return [answer(request.adapter.uri if request.adapter else "lm")]

    async def generate(self, request: TextRequest, caller: Caller) -> AsyncGenerator[Delta, None]:
        yield answer(request.adapter.uri if request.adapter else "lm")


def replica(app: App) -> App:
    """The application as HAProxy and Serve call it."""

    async def called(scope, receive, send) -> None:
        path = "/v2" + scope["path"] if scope["path"].startswith("/models/") else scope["path"]
        await app({**scope, "path": path, "root_path": "/v2/models/lm"}, receive, send)

    return called


@pytest.fixture(params=["gateway", "replica"])
def app(request: pytest.FixtureRequest) -> App:
    if request.param == "gateway":
        return create_app(Gateway(), body_limit=2000, text_body_limit=1000)
    return replica(create_single_app(SingleModel(Replica(), LM)))


@pytest.fixture
def own(app: App) -> Call:
    return partial(send, app)


def test_openais_client_works_at_a_models_own_url(app: App) -> None:
    async def use() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(
                base_url="http://maas/models/lm/v1", api_key="-", http_client=http, max_retries=0
            ) as client,
        ):
            assert [model.id async for model in client.models.list()] == ["lm", "lm:fr"]
            assert (await client.models.retrieve("lm:fr")).id == "lm:fr"
            whole = await client.completions.create(model="lm", prompt="x")
            assert (whole.model, whole.choices[0].text) == ("lm", "by lm")
            chat = await client.chat.completions.create(model="lm:fr", messages=[{"role": "user", "content": "x"}])
            assert (chat.model, chat.choices[0].message.content) == ("lm:fr", "by file:///fr")
            stream = await client.completions.create(model="lm:fr", prompt="x", stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "by file:///fr"
            with pytest.raises(openai.NotFoundError, match="lmx"):
                await client.completions.create(model="lmx", prompt="x")
            with pytest.raises(openai.NotFoundError, match="lmx"):
                await client.models.retrieve("lmx")

    asyncio.run(use())


def test_the_open_inference_protocol_is_there_too(own: Call) -> None:
    assert own("GET", "/models/lm/v2/models/lm").json()["name"] == "lm"
    assert own("GET", "/models/lm/v2/health/ready").json() == {"ready": True}
    assert own("GET", "/models/lm/v2/models/lmx").status_code == 404


def test_errors_are_in_the_shape_of_the_api_and_limits_are_its_own(own: Call) -> None:
    asked = {"model": "lm", "prompt": "x"}
    assert own("POST", "/models/lm/v1/completions", json=asked).status_code == 200
    for path in ("/models/lm/v1/completions", "/v2/models/lm/v1/completions"):
        refused = own("POST", path, content=b"{")
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
        assert own("POST", path, content=b"x" * 4_000_001).json()["error"]["code"] == "request_too_large"
    for path in ("/models/lm/v1", "/models/lm/v1/", "/models/lm/v1/nothing", "/models/lm/v1/models/lm/v1/models"):
        assert own("GET", path).json()["error"]["code"] == "not_found", path
    assert isinstance(own("GET", "/models/lm/v2/nothing").json()["error"], str)


@pytest.mark.parametrize("path", ["/v2/models/lm:fr/infer", "/v1/models/lm:fr/predict", "/v1/models/lm:fr:predict"])
def test_a_replica_refuses_rows_for_an_adapter(path: str) -> None:
    refused = send(replica(create_single_app(SingleModel(Replica(), LM))), "POST", f"/models/lm{path}", json={})
    assert (refused.status_code, "is an adapter" in refused.text) == (400, True)


def test_an_adapter_has_a_url_of_its_own() -> None:
    call = partial(send, create_app(Gateway(), body_limit=2000))
    found = call("GET", "/models/lm:fr/v1/models").json()["data"]
    assert [card["id"] for card in found] == ["lm:fr"]
    asked = json.dumps({"model": "lm", "prompt": "x"})
    assert call("POST", "/models/lm:fr/v1/completions", content=asked).status_code == 404
    assert call("POST", "/models/lm:fr/v1/completions", content=asked.replace("lm", "lm:fr")).status_code == 200


@pytest.mark.parametrize("name", ["nothing", "LM", "lm:de", "lm%20", "%6Cm2"])
def test_an_unknown_model_has_no_url(name: str) -> None:
    call = partial(send, create_app(Gateway(), body_limit=2000))
    for path in (f"/models/{name}/v1/models", f"/models/{name}/v1/models/lm", f"/models/{name}/v2/health/ready"):
        answer = call("GET", path)
        assert answer.status_code == 404
        assert "Served models: l, lm, lm-2" in answer.text


def test_models_may_have_the_names_of_paths() -> None:
    call = partial(send, create_app(Gateway(), body_limit=2000))
    for name in ("models", "v2", "lm-2", "%6Cm-2"):
        path = f"/models/{name}/v2/models/{name}"
        assert call("GET", path).json()["name"] == name.replace("%6C", "l")
        assert call("GET", f"/v2{path}").json()["name"] == name.replace("%6C", "l")
