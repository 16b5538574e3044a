"""The Open Inference Protocol over gRPC: a server in each gateway replica, beside its HTTP.

Serve's own gRPC proxy routes by metadata that the protocol's clients do not send, and listens on every interface. So
gateway replicas listen themselves; those on one machine share a port, and the kernel distributes connections to them.
Each connection is asked to end after a while, so that its client connects again. This spreads the load to replicas
that started later, and empties a replica that stops, whose gRPC calls Serve does not count.
"""

import asyncio
import errno
import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from maas_ray.serve.api.incoming import BodyBudget
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.open_inference import tensors as open_inference
from maas_ray.serve.api.open_inference.grpc_calls import Messages, answering
from maas_ray.serve.api.open_inference.grpc_health import Health
from maas_ray.serve.api.open_inference.grpc_messages import MESSAGES, PACKAGE, to_body, to_response
from maas_ray.serve.api.open_inference.shared_port import Address, claim, has_connections, leave, listening
from maas_ray.serve.caller import Caller
from maas_ray.serve.spec import MAX_TIMEOUT_S

_log = logging.getLogger("ray.serve")
_RETRY_SECONDS = 5.0  # between attempts to use a port that another process has
_CONNECTION_SECONDS = 10.0  # age at which a connection is asked to end, ± 10 %; its calls are finished


class GrpcServer:
    """Answers calls at an address, once the address is available.

    Args:
        models: the models to call.
        owner: identifies the replicas that may share the port: those of one cluster on one machine.
        message_limit: largest message that is accepted, bytes.
        max_calls: most concurrent calls; others are refused.
        budget: bytes of large messages and bodies that the process may hold at the same time.
    """

    def __init__(
        self, models: ModelCalls, *, owner: str, message_limit: int, max_calls: int, budget: BodyBudget
    ) -> None:
        self._models, self._messages = models, Messages(message_limit, budget)
        self._service = _Service(models, self._messages)
        self._owner, self._message_limit, self._max_calls = owner, message_limit, max_calls
        self._address: Address | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.problem = ""
        """The reason why it does not listen, for a person. Empty: it listens, or should not."""

    async def listen(self, address: Address | None) -> None:
        """Move to this address. None: stop listening. A port in use is retried until it is free."""
        if address == self._address:
            return
        self._stop.set()  # calls at the earlier address are finished
        self._address, self.problem, self._stop = address, "", asyncio.Event()
        if address:
            tried = asyncio.Event()
            task = asyncio.create_task(self._serve(address, tried, self._stop))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await tried.wait()

    async def close(self) -> None:
        """Stop listening; returns when all calls are answered."""
        await self.listen(None)
        await asyncio.gather(*self._tasks)

    async def _serve(self, address: Address, tried: asyncio.Event, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                listener = await self._start(address, stop)
            except OSError as error:
                problem = (
                    f"gRPC cannot listen at {address}: {error.strerror}. Set MAAS_GRPC_PORT to another port, or to 0."
                )
                if problem != self.problem:
                    _log.warning("%s Retrying every %g s.", problem, _RETRY_SECONDS)
                self.problem = problem
            else:
                self.problem = ""
                _log.info("gRPC listens at %s", address)
                tried.set()
                await stop.wait()
                await listener.close()
                return
            finally:
                tried.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _RETRY_SECONDS)

    async def _start(self, address: Address, stop: asyncio.Event) -> "_Listener":
        claimed = claim(address, self._owner)
        server = grpc.aio.server(
            maximum_concurrent_rpcs=self._max_calls,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", self._message_limit),
                ("grpc.max_connection_age_ms", int(_CONNECTION_SECONDS * 1000)),
                # Without pings, calls of a client whose machine is gone would never end.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
        server.add_generic_rpc_handlers((self._service.handler(), Health(self._models, self._messages, stop).handler()))
        before = listening(address)
        try:
            server.add_insecure_port(str(address))
        except RuntimeError as error:
            os.close(claimed)
            raise OSError(errno.EADDRINUSE, str(error)) from error
        await server.start()
        return _Listener(server, address, claimed, listening(address) - before)


@dataclass(frozen=True)
class _Listener:
    """A server that listens.

    Args:
        server: gRPC's server.
        address: its address.
        claimed: descriptor that keeps the address.
        sockets: descriptors of its listening sockets.
    """

    server: grpc.aio.Server
    address: Address
    claimed: int
    sockets: set[int]

    async def close(self) -> None:
        """Stop when every call is answered.

        gRPC breaks calls that arrive while it stops. Therefore new connections are turned away first, and existing ones
        are asked to end, as at any time.
        """
        await leave(self.sockets)
        deadline = time.monotonic() + 2 * _CONNECTION_SECONDS
        while has_connections(self.address) and time.monotonic() < deadline:
            await asyncio.sleep(_CONNECTION_SECONDS / 100)
        await self.server.stop(MAX_TIMEOUT_S)
        os.close(self.claimed)


class _Service:
    """The calls of the protocol."""

    def __init__(self, models: ModelCalls, messages: Messages) -> None:
        self._models, self._messages = models, messages

    def handler(self) -> grpc.GenericRpcHandler:
        calls = {
            "ServerLive": self.live,
            "ServerReady": self.ready,
            "ServerMetadata": self.server,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.metadata,
            "ModelInfer": self.infer,
        }
        # On the wire one message is a stream of one. Taken as a stream, it is read and parsed inside the handler: there
        # the time to read it is limited, and an error in it becomes the client's error.
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(answering(name, call, self._messages))
            for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler(f"{PACKAGE}.GRPCInferenceService", handlers)

    async def live(self, _: Any, caller: Caller) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def ready(self, _: Any, caller: Caller) -> Any:
        """Readiness of all models together."""
        ready = all([await self._models.ready(route, caller=caller) for route in self._models.routes(caller=caller)])
        return MESSAGES["ServerReadyResponse"](ready=ready)

    async def server(self, _: Any, caller: Caller) -> Any:
        # The extensions in `SERVER` concern HTTP only.
        return MESSAGES["ServerMetadataResponse"](**{**open_inference.SERVER, "extensions": []})

    async def model_ready(self, request: Any, caller: Caller) -> Any:
        route = self._models.route(request.name, request.version, caller=caller)
        ready = await self._models.ready(route, caller=caller)
        return MESSAGES["ModelReadyResponse"](ready=ready)

    async def metadata(self, request: Any, caller: Caller) -> Any:
        route = self._models.route(request.name, request.version, caller=caller)
        return MESSAGES["ModelMetadataResponse"](**route.metadata())

    async def infer(self, request: Any, caller: Caller) -> Any:
        route = self._models.route(request.model_name, request.model_version, caller=caller)
        answer = await self._models.infer(route, to_body(request), caller=caller)
        return to_response(answer.body, typed=not request.raw_input_contents)
