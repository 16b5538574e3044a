"""Requests as the clients of Triton and KServe write them: hints, columns of shape [n, 1], and health checks."""

import json
from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from maas_ray.errors import RequestError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.open_inference import grpc_health
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody, parse_infer
from tests.support.errors import raises
from tests.support.grpc_servers import Here, raw, soon, status_of
from tests.support.models import INPUTS, OUTPUTS, InProcess, route, send

HINTS = {"sequence_id": 7, "sequence_start": True, "sequence_end": True, "priority": 3, "timeout": 5000}


def over_http(parameters: dict) -> httpx.Response:
    x, word = triton_http.InferInput("x", [2, 2], "FP32"), triton_http.InferInput("word", [2, 1], "BYTES")
    x.set_data_from_numpy(np.array([[0, 1], [2, 3]], "float32"))
    word.set_data_from_numpy(np.array([["a"], ["b"]], dtype=object))
    body, length = triton_http.InferenceServerClient.generate_request_body([x, word], parameters=parameters, **HINTS)
    app = create_app(InProcess(route("sums", "predict")), body_limit=10_000)
    headers = {LENGTH_HEADER: str(length)}
    return send(app, "POST", "/v2/models/sums/infer", content=bytes(body), headers=headers)


def test_hints_of_tritons_http_client_are_passed_over() -> None:
    answer = over_http({"content_type": "np"})
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH_HEADER])
    document = json.loads(answer.content[:length])
    assert [output["shape"] for output in document["outputs"]] == [[2], [2]]
    assert np.frombuffer(answer.content[length : length + 8], "<f4").tolist() == [1, 5]
    refused = over_http({"temperature": 1})
    assert (refused.status_code, "temperature" in refused.text) == (400, True)


def test_hints_of_tritons_grpc_client_are_passed_over(here: Here, client: triton.InferenceServerClient) -> None:
    answer = client.infer("sums", raw(), parameters={"content_type": "np"}, **HINTS)
    assert answer.as_numpy("sum").tolist() == [1, 5]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritons_grpc_client_may_compress(client: triton.InferenceServerClient, algorithm: str) -> None:
    answer = client.infer("sums", raw("b" * 5000), compression_algorithm=algorithm)
    assert answer.as_numpy("sum").tolist() == [1, 5]


def document(**word) -> InferBody:
    tensor = {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]} | word
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [0, 1, 2, 3]}
    return InferBody(json.dumps({"inputs": [x, tensor]}).encode())


@pytest.mark.parametrize("data", [["a", "b"], [["a"], ["b"]]])
def test_a_column_may_be_sent_as_rows_of_one_value(data: list) -> None:
    parsed = parse_infer(document(shape=[2, 1], data=data), INPUTS, OUTPUTS)
    assert parsed.inputs["word"].tolist() == ["a", "b"]


@pytest.mark.parametrize("word", [{"shape": [1, 2]}, {"shape": [2, 1, 1]}, {"shape": [2, 1], "data": [["a", "b"]]}])
def test_other_shapes_are_refused(word: dict) -> None:
    with raises(RequestError, "tensor_shape"):
        parse_infer(document(**word), INPUTS, OUTPUTS)


@pytest.mark.parametrize(("kind", "fine"), [("str", True), ("np", True), ("base64", False), ("datetime", False)])
def test_a_content_type_is_taken_if_it_changes_nothing(kind: str, fine: bool) -> None:
    body = document(parameters={"content_type": kind})
    if fine:
        assert parse_infer(body, INPUTS, OUTPUTS).inputs["word"].tolist() == ["a", "b"]
    else:
        with raises(RequestError, "invalid_value", "content_type"):
            parse_infer(body, INPUTS, OUTPUTS)


def test_a_models_own_parameter_is_no_hint() -> None:
    body = InferBody(json.dumps(json.loads(document().data) | {"parameters": {"timeout": 3, "priority": 1}}).encode())
    assert parse_infer(body, INPUTS, OUTPUTS, ["timeout"]).parameters == {"timeout": 3}


# --- grpc.health.v1: field 1 of the request is the service, field 1 of the answer its status

SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


def service(name: str) -> bytes:
    return b"\x0a" + bytes([len(name)]) + name.encode() if name else b""


@pytest.fixture
def channel(port: int, here: Here, client: triton.InferenceServerClient) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
        yield opened


def test_health_is_that_of_the_server_or_of_a_model(channel: grpc.Channel) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(service("")) == check(service("inference.GRPCInferenceService")) == SERVING
    assert (check(service("sums")), check(service("lm"))) == (SERVING, NOT_SERVING)
    assert status_of(lambda: check(service("none")))[0] == grpc.StatusCode.NOT_FOUND
    assert status_of(lambda: check(b"\xff"))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_watch_reports_changes_and_ends_with_the_server(
    channel: grpc.Channel, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_health, "_WATCH_SECONDS", 0.02)
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    unknown = watch(service("none"))
    assert next(unknown) == UNKNOWN
    unknown.cancel()
    changes = watch(service("lm"))
    assert next(changes) == NOT_SERVING

    async def ready(route, *, caller) -> bool:
        return True

    monkeypatch.setattr(here.models, "ready", ready)
    assert next(changes) == SERVING
    here.begin(here._servers[0].close())
    assert next(changes) == NOT_SERVING
    assert status_of(lambda: next(changes))[0] == grpc.StatusCode.UNAVAILABLE


def test_watches_leave_room_for_calls(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_health, "_MAX_WATCHES", 2)
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    kept = [watch(service("")) for _ in range(2)]
    assert [next(one) for one in kept] == [SERVING] * 2
    assert status_of(lambda: next(watch(service(""))))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    for one in kept:
        one.cancel()
    check = channel.unary_unary("/grpc.health.v1.Health/Check")

    def again() -> bool:
        with_room = watch(service(""))
        try:
            return next(with_room) == SERVING
        except grpc.RpcError:
            return False
        finally:
            with_room.cancel()

    soon(again)
    assert check(service("")) == SERVING
