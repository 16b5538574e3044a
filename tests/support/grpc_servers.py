"""gRPC servers of the Open Inference Protocol in the test's own process, and clients of them."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from maas_ray.errors import ModelNotFoundError, OverloadedError, RequestError
from maas_ray.serve.api.incoming import BodyBudget
from maas_ray.serve.api.model_calls import Answer
from maas_ray.serve.api.open_inference.grpc_server import GrpcServer
from maas_ray.serve.api.open_inference.shared_port import Address
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
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
        self.models, self.budget = FailingSums(), BodyBudget(8 * LIMIT)
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
            limits = {"message_limit": LIMIT, "max_calls": max_calls, "budget": self.budget}
            server = GrpcServer(self.models, owner=owner, **limits)
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


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)  # whoever is turned away would knock again after a second
        return probe.connect_ex(("127.0.0.1", port)) == 0
