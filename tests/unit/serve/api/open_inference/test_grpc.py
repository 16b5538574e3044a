"""The Open Inference Protocol over gRPC, asked by real clients: right answers, and each error its own status."""

import asyncio
import contextlib
import gc
import json
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from maas_ray.cluster import free_ports
from maas_ray.errors import ModelNotFoundError, OverloadedError, RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference import grpc_server, shared_port
from maas_ray.serve.api.open_inference.grpc_messages import MESSAGES, to_body, to_response
from maas_ray.serve.api.open_inference.grpc_server import GrpcServer
from maas_ray.serve.api.open_inference.shared_port import Address
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.tasks import TensorSpec
from tests.support.errors import raises
from tests.support.models import INPUTS, OUTPUTS, InProcess, route

LIMIT = 100_000
FAILURES = {
    "bad": RequestError("bad row", status=400),
    "gone": ModelNotFoundError("m", ["n"] * 5000),
    "large": RequestError("large", status=413),
    "full": OverloadedError("full"),
    "down": RequestError("down: 東京", status=503),
    "slow": RequestError("slow", status=504),
    "odd": RequestError("odd", status=418),
    "bug": ValueError("secret"),
}


class FailingSums(InProcess):
    """A model that sums; its first word can name a failure or a delay."""

    def __init__(self) -> None:
        super().__init__(route("sums", "predict"), route("lm", "generate"))
        self.ended: list[str] = []

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        return route.name == "sums"

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        word = str(parse_infer(body, INPUTS, OUTPUTS).inputs["word"][0])
        if word in FAILURES:
            raise FAILURES[word]
        if word.startswith("wait"):
            try:
                await asyncio.sleep(float(word[4:]))
            except asyncio.CancelledError:
                self.ended.append("cancelled")
                raise
            self.ended.append("answered")
        return await super().infer(route, body, caller=caller)


class Here:
    """An event loop in a thread, as a replica has one for its own code, and servers on it."""

    def __init__(self) -> None:
        self.models = FailingSums()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._servers: list[GrpcServer] = []
        self._thread.start()

    def do(self, what: Awaitable) -> object:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    def begin(self, what: Awaitable):
        return asyncio.run_coroutine_threadsafe(what, self._loop)

    def server(self, port: int, owner: str = "us", max_calls: int = 10) -> GrpcServer:
        async def start() -> GrpcServer:
            server = GrpcServer(self.models, owner=owner, message_limit=LIMIT, max_calls=max_calls)
            await server.listen(Address("127.0.0.1", port))
            return server

        self._servers.append(self.do(start()))
        return self._servers[-1]

    def end(self) -> None:
        for server in self._servers:
            self.do(server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(grpc_server, "_RETRY_SECONDS", 0.1)
    found = Here()
    yield found
    # Whoever is connected still is only forgotten.
    monkeypatch.setattr(grpc_server, "_CONNECTION_SECONDS", 0)
    monkeypatch.setattr(shared_port, "_TAKEN_SECONDS", 0)
    found.end()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are short."""
    monkeypatch.setattr(grpc_server, "_CONNECTION_SECONDS", 0.2)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def client(here: Here, port: int) -> Iterator[triton.InferenceServerClient]:
    assert not here.server(port).problem
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def raw(word: str = "a", rows: int = 2) -> list[triton.InferInput]:
    x, words = triton.InferInput("x", [rows, 2], "FP32"), triton.InferInput("word", [rows], "BYTES")
    x.set_data_from_numpy(np.arange(rows * 2, dtype="float32").reshape(rows, 2))
    words.set_data_from_numpy(np.array([word] * rows, dtype=object))
    return [x, words]


def typed(**changes) -> service_pb2.ModelInferRequest:
    """One row, in typed contents."""
    contents = {"x": {"fp32_contents": [1, 2]}, "word": {"bytes_contents": ["東".encode()]}} | changes
    tensors = [
        service_pb2.ModelInferRequest.InferInputTensor(
            name=spec.name,
            datatype=spec.datatype,
            shape=[max(1, size) for size in spec.shape],
            contents=service_pb2.InferTensorContents(**contents[spec.name]),
        )
        for spec in INPUTS
    ]
    return service_pb2.ModelInferRequest(model_name="sums", inputs=tensors)


@contextlib.contextmanager
def stub(port: int) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    # A connection of its own: channels of one process to one address would share one.
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def soon(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- messages


def fill(message, depth: int = 0):
    """The message with something in every field."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof and field.index % 5 != depth % 5:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            fill(getattr(message, field.name)["key"], depth)
        elif field.message_type:
            fill(getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name), depth + 1)
        else:
            value = {"bool": True, "str": f"{field.name} 東", "bytes": b"\xff\x00"}.get(
                type(field.default_value).__name__ if not field.is_repeated else _element(field), 7
            )
            if field.is_repeated:
                getattr(message, field.name).extend([value, value])
            else:
                setattr(message, field.name, value)
    return message


def _element(field) -> str:
    return {field.TYPE_BOOL: "bool", field.TYPE_STRING: "str", field.TYPE_BYTES: "bytes"}.get(field.type, "number")


@pytest.mark.parametrize("name", [name for name in MESSAGES if name.endswith(("Request", "Response"))])
@pytest.mark.parametrize("depth", range(5))
def test_messages_are_the_published_ones_on_the_wire(name: str, depth: int) -> None:
    theirs = fill(getattr(service_pb2, name)(), depth)
    ours = MESSAGES[name].FromString(theirs.SerializeToString())
    ours.DiscardUnknownFields()
    assert type(theirs).FromString(ours.SerializeToString()) == theirs


VALUES = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "FP32": [1.5, float("inf")],
    "FP64": [1e300, float("-inf")],
    "BYTES": ["", "東京"],
}
FIELDS = {"BOOL": "bool", "BYTES": "bytes", "FP32": "fp32", "FP64": "fp64", "INT64": "int64", "UINT64": "uint64"}


def one_tensor(datatype: str, values: list):
    field = FIELDS.get(datatype, "uint" if datatype.startswith("U") else "int") + "_contents"
    sent = [value.encode() if isinstance(value, str) else value for value in values]
    tensor = {"name": "t", "datatype": datatype, "shape": [len(values)], "contents": {field: sent}}
    return MESSAGES["ModelInferRequest"](inputs=[tensor], id="7")


@pytest.mark.parametrize("datatype", VALUES)
def test_typed_contents_survive_the_conversion_both_ways(datatype: str) -> None:
    spec = (TensorSpec("t", datatype, (-1,)),)
    asked = one_tensor(datatype, VALUES[datatype])
    request = parse_infer(to_body(asked), spec, spec)
    assert request.inputs["t"].tolist() == VALUES[datatype]
    body = render_infer(request, request.inputs, spec, "m", "3")
    answer = to_response(body, typed=True)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert answer.outputs[0].contents == asked.inputs[0].contents
    assert not answer.raw_output_contents
    plain = to_response(body, typed=False)
    assert not plain.outputs[0].HasField("contents")
    assert plain.raw_output_contents[0] == bytes(to_body(asked).tail)


def test_sixteen_bit_floats_travel_as_bytes_alone() -> None:
    spec = (TensorSpec("t", "FP16", (-1,)),)
    half = np.array([1.5, np.nan], "<f2")
    tensor = {"name": "t", "datatype": "FP16", "shape": [2]}
    asked = MESSAGES["ModelInferRequest"](inputs=[tensor], raw_input_contents=[half.tobytes()])
    request = parse_infer(to_body(asked), spec, spec)
    # Asked with typed contents or not, there are none to answer with.
    answer = to_response(render_infer(request, request.inputs, spec, "m", "1"), typed=True)
    assert answer.raw_output_contents[0] == half.tobytes()
    with raises(RequestError, "tensor_datatype", "inputs[0].datatype", "'FP16'", "raw_input_contents"):
        to_body(MESSAGES["ModelInferRequest"](inputs=[tensor]))


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT16", -(2**15) - 1), ("UINT8", 256)])
def test_typed_numbers_are_not_wrapped_around(datatype: str, value: int) -> None:
    with raises(RequestError, "out_of_range", "inputs[0].contents", datatype, value):
        to_body(one_tensor(datatype, [value]))


def test_parameters_reach_the_model_except_those_of_http() -> None:
    request = one_tensor("INT8", [1])
    for key, value in {"flag": {"bool_param": True}, "n": {"int64_param": -3}, "t": {"double_param": 0.5}}.items():
        request.parameters.add(key=key, value=value)
    request.inputs[0].parameters.add(key="s", value={"string_param": "x"})
    request.outputs.add(name="t").parameters.add(key="u", value={"uint64_param": 2**63})
    document = json.loads(to_body(request).document)
    assert document["parameters"] == {"flag": True, "n": -3, "t": 0.5, "binary_data_output": True}
    assert document["inputs"][0]["parameters"] == {"s": "x", "binary_data_size": 1}
    assert document["outputs"] == [{"name": "t", "parameters": {"u": 2**63}}]
    for name, value, code, named in (
        ("binary_data_size", {"int64_param": 0}, "unsupported_parameter", "HTTP"),
        ("x", {}, "invalid_value", "None"),
        ("x", {"double_param": float("nan")}, "invalid_value", "nan"),
    ):
        wrong = one_tensor("INT8", [1])
        wrong.inputs[0].parameters.add(key=name, value=value)
        with raises(RequestError, code, "inputs[0]", f"'{name}'", named):
            to_body(wrong)


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
        _, call = ask.ServerLive.with_call(service_pb2.ServerLiveRequest(), metadata=[("x-request-id", "mine")])
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"
        _, call = ask.ServerLive.with_call(service_pb2.ServerLiveRequest())
        assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_the_caller_is_determined_from_metadata_and_goes_with_every_call(
    here: Here, port: int, client: triton.InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "authenticate", lambda metadata: Caller(id=metadata["x-user"], kind="test"))
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
    unknown.parameters["priority"].uint64_param = 1
    zero.inputs[0].datatype = "FP8"
    shaped = typed()
    shaped.inputs[0].shape[:] = [-1, 2]
    with stub(port) as ask:
        for request, said in (
            (both, "inputs[0].contents: raw_input_contents"),
            (one, "raw_input_contents: 1 tensors for 2 inputs"),
            (short, "1 elements"),
            (elsewhere, "inputs[0].contents: fp64_contents"),
            (unknown, "priority"),
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


# --- the port


@pytest.mark.usefixtures("short")
def test_replicas_share_a_port_and_one_takes_over_from_the_other(here: Here, port: int) -> None:
    """As in an update of the gateway: no call fails while one server follows another."""
    failed: list[str] = []
    answered = 0
    stop = threading.Event()

    def ask_on(calls: float) -> None:
        nonlocal answered
        while not stop.is_set():
            with stub(port) as ask:
                done = 0
                while done < calls and not stop.is_set():
                    done += 1
                    try:
                        ask.ModelInfer(typed(), timeout=10)
                        answered += 1
                    except grpc.RpcError as error:
                        failed.append(f"{error.code()}: {error.details()}")

    servers = [here.server(port)]
    # Over connections that are kept, and over a new one every few calls.
    asking = [threading.Thread(target=ask_on, args=[calls]) for calls in (np.inf, np.inf, 3)]
    for one in asking:
        one.start()
    try:
        for _ in range(5):
            servers.append(here.server(port))
            assert not servers[-1].problem
            time.sleep(0.1)
            here.do(servers[-2].close())
    finally:
        stop.set()
        for one in asking:
            one.join(30)
    assert not failed
    assert answered > 100


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_another_program_has_is_left_to_it_until_it_is_free(here: Here, port: int, shares: bool) -> None:
    with socket.socket() as other:
        if shares:  # as gRPC's own servers do, by default
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        server = here.server(port)
        for named in (f"127.0.0.1:{port}", "Address already in use", "MAAS_GRPC_PORT"):
            assert named in server.problem
    soon(lambda: not server.problem)
    with stub(port) as ask:
        assert ask.ServerLive(service_pb2.ServerLiveRequest()).live


@pytest.mark.usefixtures("short")
def test_two_clusters_of_one_user_do_not_share_a_port(here: Here, port: int) -> None:
    first, second = here.server(port, "one"), here.server(port, "two")
    assert not first.problem
    assert "Another cluster of this user" in second.problem
    with stub(port) as ask:
        here.do(first.close())
        soon(lambda: not second.problem)
        assert ask.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=5).live
    assert "Another cluster of this user" in here.server(port, "one").problem


@pytest.mark.usefixtures("short")
def test_the_grpc_server_moves_to_another_port_and_to_none(here: Here) -> None:
    before, after = free_ports(2)
    server = here.server(before)
    with stub(before) as ask:
        asking = ask.ModelInfer.future(typed(word={"bytes_contents": [b"wait0.5"]}))
        time.sleep(0.2)
        here.do(server.listen(Address("127.0.0.1", after)))
        assert list(asking.result(5).outputs[0].contents.fp32_contents) == [3]
    with stub(after) as ask:
        assert ask.ServerLive(service_pb2.ServerLiveRequest()).live
        here.do(server.listen(None))
        soon(lambda: not listens(after))
    assert not listens(before)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)  # whoever is turned away would knock again after a second
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_address_is_written_as_grpc_takes_it() -> None:
    assert [str(Address("127.0.0.1", 1)), str(Address("::1", 2))] == ["127.0.0.1:1", "[::1]:2"]
