"""A replica that answers HTTP itself: the same application as the gateway's, over one model."""

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx
import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.api.relay import RELAY_HEADER
from maas_ray.serve.caller import ANONYMOUS, Caller
from maas_ray.serve.replicas import direct
from maas_ray.serve.replicas.direct import SingleModel, create_single_app
from maas_ray.serve.spec import GatewayArgs
from maas_ray.serve.text.types import Delta, TextRequest
from tests.support.models import route, send


class Replica:
    """Answers after a while; a body `no` is refused."""

    def __init__(self) -> None:
        self.closed = 0

    async def infer(self, body: InferBody, caller: Caller) -> Answer[InferBody] | RequestError:
        assert caller == ANONYMOUS
        await asyncio.sleep(5 if body.data == b"slow" else 0)
        return RequestError("no such thing", param="x") if body.data == b"no" else Answer(body, Usage(rows=1))

    async def predict(self, body: PredictBody, caller: Caller) -> Answer[bytes]:
        assert caller == ANONYMOUS
        return Answer(b'{"label":"7"}', Usage(rows=1))

    async def generate(self, request: TextRequest, caller: Caller) -> AsyncGenerator[Delta, None]:
        assert caller == ANONYMOUS
        try:
            yield Delta("one", None, 1, 1)
            await asyncio.sleep(5 if request.prompt == "slow" else 0)
            yield Delta(" two", "stop", 1, 2)
        finally:
            self.closed += 1


def ask(replica: Replica, kind: str, path: str, **request) -> httpx.Response:
    app = create_single_app(SingleModel(replica, route("m", kind, timeout_s=0.3)))

    return send(app, "POST", path, root_path="/v2/models/m", **request)  # the root path that Serve passes


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/models/m/infer", "yes", 200),
        ("/v2/models/m/versions/3/infer", "yes", 200),
        ("/v1/models/m/predict", "yes", 200),
        ("/v2/models/m/infer", "no", 400),
        ("/v2/models/m/infer", "slow", 504),
        ("/v2/models/m/versions/2/infer", "yes", 404),
        ("/v2/models/other/infer", "yes", 404),
        ("/v2/models/m/nothing", "yes", 404),
        ("/v2/models/m/infer", "x" * 16_000_001, 413),
    ],
)
def test_a_direct_replica_answers_like_the_gateway(path: str, body: str, status: int) -> None:
    answer = ask(Replica(), "predict", path, content=body)
    assert answer.status_code == status, answer.text
    assert status == 200 or list(answer.json()) == ["error"]


def test_a_direct_replica_has_the_gateways_limits_and_origins() -> None:
    model = SingleModel(Replica(), route("m", "predict"))
    app, page = create_single_app(model), "https://app.example.com"

    def asked(size: int) -> tuple[int, str | None]:
        headers = {"origin": page}
        answer = send(app, "POST", "/v2/models/m/infer", root_path="/v2/models/m", content=b"x" * size, headers=headers)
        return answer.status_code, answer.headers.get("access-control-allow-origin")

    assert asked(2_000_000) == (200, None)
    config = GatewayArgs(body_limit_mb=1, cors_origins=(page,)).http_options()
    model.update(route("m", "predict"), direct=True, options=json.loads(json.dumps(config)))
    assert (asked(2_000_000), asked(900_000)) == ((413, page), (200, page))
    model.update(route("m", "predict"), direct=True)
    assert asked(2_000_000) == (200, None)


def test_a_direct_stream_that_is_too_slow_is_closed() -> None:
    replica = Replica()
    asked = {"model": "m", "prompt": "x", "stream": True}
    whole = ask(replica, "generate", "/v1/completions", json=asked)
    assert whole.text.endswith("data: [DONE]\n\n")
    ended = ask(replica, "generate", "/v1/completions", json=asked | {"prompt": "slow"})
    assert '"code": "timeout"' in ended.text.replace('":"', '": "')
    assert replica.closed == 2


@pytest.mark.parametrize("root_path", ["", "/v2/models/other", "/proxy"])
def test_a_replica_without_a_direct_path_answers_no_client(root_path: str) -> None:
    app = create_single_app(SingleModel(Replica(), route("m", "generate")))
    asked = {"model": "m", "prompt": "x"}
    for method, path in (("POST", "/v1/completions"), ("POST", "/v2/models/m/infer"), ("GET", "/v1/models")):
        assert send(app, method, path, root_path=root_path, json=asked).status_code == 404


@pytest.mark.parametrize(("leaving", "status"), [(60.0, 200), (0.0, 404)])
def test_replicas_answer_for_a_moment_after_their_path_has_moved(
    leaving: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HAProxy still sends requests to them; Serve has taken the path away already."""
    monkeypatch.setattr(direct, "_LEAVING_S", leaving)
    model = SingleModel(Replica(), route("m", "generate"))
    app = create_single_app(model)
    model.update(route("m", "generate"), direct=True)
    model.update(route("m", "generate"), direct=False)
    asked = {"model": "m", "prompt": "x"}
    assert send(app, "POST", "/v1/completions", json=asked | {"stream": True}).status_code == status


@pytest.mark.parametrize("root", ["", "/v2/models/m"])
def test_a_gateway_that_knows_the_secret_is_answered_on_any_path(root: str) -> None:
    app = create_single_app(SingleModel(Replica(), route("m", "predict")), "s3cret")

    def post(secret: str | None, path: str = "/v2/models/m/infer", size: int = 3) -> httpx.Response:
        headers = {} if secret is None else {RELAY_HEADER: secret}
        return send(app, "POST", f"/v2/models/m{path}", root_path=root, content="x" * size, headers=headers)

    answered = post("s3cret", size=20_000_000)  # the gateway has checked its size
    assert (answered.status_code, answered.headers[RELAY_HEADER]) == (200, "1")
    assert post("s3cret", "/v1/models/m/predict").status_code == 200
    refused = post("s3cret", "/v1/models/other/predict")
    assert (refused.status_code, refused.headers[RELAY_HEADER]) == (404, "1")
    for wrong in (None, "", "s3cre", "S3CRET", "1"):
        answer = post(wrong)
        assert (answer.status_code, RELAY_HEADER in answer.headers) == (200 if root else 404, False)


def test_without_a_secret_no_header_opens_a_replica() -> None:
    app = create_single_app(SingleModel(Replica(), route("m", "predict")))
    assert send(app, "POST", "/v2/models/m/infer", content="x", headers={RELAY_HEADER: ""}).status_code == 404
