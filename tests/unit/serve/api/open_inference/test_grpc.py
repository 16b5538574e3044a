"""The Open Inference Protocol over gRPC, asked by real clients: right answers, and each error its own status."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.incoming import UNCOUNTED, BodyBudget
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference import grpc_calls
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from tests.support.grpc_servers import LIMIT, Here, listens, raw, soon, status_of, stub, typed

# --- answers


def test_tritonclient_gets_metadata_and_answers(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert not client.is_server_ready()  # `lm` is not
    assert client.get_server_metadata().name == "maas_ray"
    assert client.is_model_ready("sums")
    assert not client.is_model_ready("lm", "3")
    metadata = client.get_model_metadata("sums", "3", as_json=True)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("sums", ["3"], "maas_ray_sums")
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}
    only_sum = [triton.InferRequestedOutput("sum")]
    for version, outputs in (("", None), ("3", only_sum)):
        answer = client.infer("sums", raw("é"), model_version=version, outputs=outputs, request_id="mine")
        assert answer.as_numpy("sum").tolist() == [1, 5]
        assert (answer.get_response().model_version, answer.get_response().id) == ("3", "mine")
        found = answer.as_numpy("word")
        assert found is None if outputs else [one.decode() for one in found] == ["é", "é"]
    zipped = client.infer("sums", raw("b" * 5000), compression_algorithm="gzip")
    assert zipped.as_numpy("sum").tolist() == [1, 5]


def test_typed_contents_are_answered_with_typed_contents(port: int, client: triton.InferenceServerClient) -> None:
    with stub(port) as ask:
        answer = ask.ModelInfer(typed())
    assert [list(answer.outputs[0].contents.fp32_contents), *answer.outputs[1].contents.bytes_contents] == [
        [3],
        "東".encode(),
    ]
    assert not answer.raw_output_contents


def test_each_call_has_a_request_id(port: int, client: triton.InferenceServerClient) -> None:
    with stub(port) as ask:
        for given in ("x-request-id", "x-client-request-id"):
            _, call = ask.ServerLive.with_call(service_pb2.ServerLiveRequest(), metadata=[(given, "mine")])
            trailers = dict(call.trailing_metadata())
            assert (len(trailers["x-request-id"]), trailers["x-client-request-id"]) == (32, "mine")
        _, call = ask.ServerLive.with_call(
            service_pb2.ServerLiveRequest(), metadata=[("x-client-request-id", "x" * 5000)]
        )
        assert dict(call.trailing_metadata())["x-client-request-id"] == "x" * 200  # as over HTTP
        _, call = ask.ServerLive.with_call(service_pb2.ServerLiveRequest())
        assert [name for name, _ in call.trailing_metadata()] == ["x-request-id"]


def test_the_caller_is_determined_from_metadata_and_goes_with_every_call(
    here: Here, port: int, client: triton.InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_calls, "authenticate", lambda metadata: Caller(id=metadata["x-user"], kind="test"))
    with stub(port) as ask:
        ask.ModelInfer(typed(), metadata=[("x-user", "anna"), ("x-binary-bin", b"\0")])
    assert here.models.callers == {"route": Caller("anna", "test"), "infer": Caller("anna", "test")}


# --- errors


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [
        ("bad", "INVALID_ARGUMENT", "bad row"),
        ("gone", "NOT_FOUND", "'m'"),
        ("large", "RESOURCE_EXHAUSTED", "large"),
        ("full", "RESOURCE_EXHAUSTED", "full"),
        ("down", "UNAVAILABLE", "down: 東京"),
        ("slow", "DEADLINE_EXCEEDED", "slow"),
        ("odd", "UNKNOWN", "odd"),
        ("bug", "INTERNAL", "request id"),
    ],
)
def test_each_failure_has_its_own_status(
    port: int, client: triton.InferenceServerClient, word: str, code: str, said: str
) -> None:
    with stub(port) as ask, pytest.raises(grpc.RpcError) as caught:
        ask.ModelInfer(typed(word={"bytes_contents": [word.encode()]}))
    error = caught.value
    assert (error.code(), said in error.details()) == (grpc.StatusCode[code], True)
    assert "secret" not in error.details()
    trailers = dict(error.trailing_metadata())
    assert trailers.get("grpc-retry-pushback-ms") == ("1000" if word in ("full", "down") else None)
    if word == "bug":
        assert trailers["x-request-id"] in error.details()


def test_memory_of_a_refused_call_is_freed_at_once(
    here: Here, port: int, client: triton.InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held:
        pass

    async def refuse(route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        held = Held()
        kept.append(weakref.ref(held))
        try:
            raise ValueError
        except ValueError as error:
            raise RequestError("no") from error

    kept: list[weakref.ref[Held]] = []
    monkeypatch.setattr(here.models, "infer", refuse)
    gc.disable()
    try:
        with stub(port) as ask:
            assert status_of(lambda: ask.ModelInfer(typed())) == (grpc.StatusCode.INVALID_ARGUMENT, "no")
        soon(lambda: kept[0]() is None)
    finally:
        gc.enable()


def test_mistakes_of_a_grpc_client_are_named(port: int, client: triton.InferenceServerClient) -> None:
    both = typed()
    both.raw_input_contents.extend([b"12345678", b"\0\0\0\0"])
    one = service_pb2.ModelInferRequest(model_name="sums", inputs=typed().inputs, raw_input_contents=[b""])
    short = typed(x={"fp32_contents": [1]})
    elsewhere = typed(x={"fp64_contents": [1, 2]})
    unknown, zero = typed(), typed()
    unknown.parameters["classification"].uint64_param = 1
    zero.inputs[0].datatype = "FP8"
    shaped = typed()
    shaped.inputs[0].shape[:] = [-1, 2]
    with stub(port) as ask:
        for request, said in (
            (both, "inputs[0].contents: raw_input_contents"),
            (one, "raw_input_contents: 1 tensors for 2 inputs"),
            (short, "1 elements"),
            (elsewhere, "inputs[0].contents: fp64_contents"),
            (unknown, "classification"),
            (zero, "'FP8'"),
            (shaped, "inputs[0].shape"),
            (service_pb2.ModelInferRequest(model_name="sums"), "inputs"),
        ):
            code, details = status_of(lambda request=request: ask.ModelInfer(request))
            assert (code, said in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
        for name, version, said in (("nope", "", "'nope'"), ("sums", "2", "version 2")):
            asked = service_pb2.ModelInferRequest(model_name=name, model_version=version)
            code, details = status_of(lambda asked=asked: ask.ModelInfer(asked))
            assert (code, said in details) == (grpc.StatusCode.NOT_FOUND, True)
            for call, kind in ((ask.ModelReady, "ModelReady"), (ask.ModelMetadata, "ModelMetadata")):
                asked = getattr(service_pb2, f"{kind}Request")(name=name, version=version)
                assert status_of(lambda call=call, asked=asked: call(asked))[0] is grpc.StatusCode.NOT_FOUND
        code, _ = status_of(lambda: ask.RepositoryIndex(service_pb2.RepositoryIndexRequest()))
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_not_a_message_are_an_invalid_argument(port: int, client: triton.InferenceServerClient) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in ("ModelInfer", "ServerLive"):
            ask = channel.unary_unary(f"/inference.GRPCInferenceService/{call}")
            code, details = status_of(lambda ask=ask: ask(b"\x0a\xff\xff"))
            assert (code, call in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_a_message_over_the_limit_is_refused_even_if_compressed(
    port: int, client: triton.InferenceServerClient
) -> None:
    for algorithm in (None, "gzip"):
        with pytest.raises(triton.InferenceServerException, match=r"essage larger than max") as caught:
            client.infer("sums", raw("x" * LIMIT), compression_algorithm=algorithm)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.infer("sums", raw("x" * (LIMIT // 2 - 500))).as_numpy("sum").tolist() == [1, 5]


# --- how long


def test_the_client_s_deadline_cancels_the_call(here: Here, client: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("sums", raw("wait60"), client_timeout=0.3)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    soon(lambda: here.models.ended == ["cancelled"], seconds=1)


def test_a_client_that_disconnects_cancels_the_call(here: Here, client: triton.InferenceServerClient) -> None:
    asking = client.async_infer("sums", raw("wait60"), callback=lambda result, error: None)
    time.sleep(0.2)
    asking.cancel()
    soon(lambda: here.models.ended == ["cancelled"], seconds=1)


def test_a_message_that_does_not_arrive_is_refused(
    port: int, client: triton.InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "BODY_SECONDS", 0.3)
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield b""

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        code, details = status_of(lambda: ask(nothing()))
        assert (code, "0.3 s" in details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
        never.set()
        code, details = status_of(lambda: ask(iter([])))
        assert (code, "message" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_more_calls_than_allowed_are_refused_not_queued(here: Here, port: int) -> None:
    here.server(port, max_calls=2)
    with stub(port) as ask:
        waiting = [ask.ModelInfer.future(typed(word={"bytes_contents": [b"wait1"]})) for _ in range(2)]
        time.sleep(0.3)
        code, _ = status_of(lambda: ask.ServerLive(service_pb2.ServerLiveRequest()))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [list(one.result().outputs[0].contents.fp32_contents) for one in waiting] == [[3], [3]]


@pytest.mark.usefixtures("short")
def test_calls_in_flight_are_finished_when_a_server_stops(here: Here, port: int) -> None:
    server = here.server(port)
    with stub(port) as ask:
        asking = ask.ModelInfer.future(typed(word={"bytes_contents": [b"wait1.5"]}))
        time.sleep(0.1)
        closing = here.begin(server.close())
        soon(lambda: not listens(port))
        with stub(port) as late:
            code, _ = status_of(lambda: late.ServerLive(service_pb2.ServerLiveRequest()))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert not closing.done()
        assert list(asking.result(5).outputs[0].contents.fp32_contents) == [3]
        closing.result(5)
    assert here.models.ended == ["answered"]


# --- memory


class Arriving:
    """A call whose message arrives when the test says so."""

    def __init__(self, message: bytes | None = None) -> None:
        self.message: asyncio.Future[bytes] = asyncio.Future()
        if message is not None:
            self.message.set_result(message)

    async def read(self) -> bytes:
        return await self.message


async def status(messages: grpc_calls.Messages, call: Arriving, seconds: float = 0) -> int:
    """Hold a call's message for some seconds; returns 200, or the status of the refusal."""
    try:
        async with messages.of(call) as message:
            assert message == await call.message
            await asyncio.sleep(seconds)
    except RequestError as error:
        return error.status
    return 200


def test_messages_that_do_not_arrive_take_the_largest_size_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_calls, "_AT_ONCE_SECONDS", 0.05)
    monkeypatch.setattr(refusals, "BODY_SECONDS", 0.5)
    largest = 1_000_000
    budget = BodyBudget(2 * (largest - UNCOUNTED))

    async def run() -> None:
        messages = grpc_calls.Messages(largest, budget)
        stuck = [Arriving() for _ in range(4)]
        asked = [asyncio.create_task(status(messages, call)) for call in stuck]
        await asyncio.sleep(0.2)
        assert [task.result() for task in asked if task.done()] == [429, 429]  # as soon as they are seen to be slow
        assert await status(messages, Arriving(b"small" * 1000)) == 200
        assert await status(messages, Arriving(bytes(UNCOUNTED + 1))) == 429
        waiting = next(call for call, task in zip(stuck, asked, strict=True) if not task.done())
        waiting.message.set_result(b"here")
        assert sorted([await task for task in asked]) == [200, 408, 429, 429]
        assert all(call.message.done() for call in stuck)  # nothing waits for the rest of those that were refused
        held = [asyncio.create_task(status(messages, Arriving(bytes(largest)), 0.1)) for _ in range(3)]
        assert sorted([await task for task in held]) == [200, 200, 429]

    asyncio.run(run())
    assert budget.take(2 * (largest - UNCOUNTED))  # everything was given back


def test_large_messages_and_bodies_share_a_budget(here: Here, port: int, client: triton.InferenceServerClient) -> None:
    large = typed(word={"bytes_contents": [b"x" * 80_000]})
    with stub(port) as ask:
        assert here.budget.take(8 * LIMIT)  # as bodies over HTTP do
        code, said = status_of(lambda: ask.ModelInfer(large))
        assert (code, said) == (grpc.StatusCode.RESOURCE_EXHAUSTED, refusals.too_many_bodies().message)
        assert len(ask.ModelInfer(typed()).outputs) == 2
        here.budget.give_back(8 * LIMIT)
        assert len(ask.ModelInfer(large).outputs) == 2
