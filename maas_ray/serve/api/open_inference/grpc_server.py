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
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import grpc

from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.middleware import CLIENT_ID_HEADER
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.open_inference import tensors as open_inference
from maas_ray.serve.api.open_inference.grpc_messages import MESSAGES, PACKAGE, parse, to_body, to_response
from maas_ray.serve.api.open_inference.shared_port import Address, claim, has_connections, leave, listening
from maas_ray.serve.caller import Caller, authenticate
from maas_ray.serve.spec import MAX_TIMEOUT_S

_log = logging.getLogger("ray.serve")
_RETRY_SECONDS = 5.0  # between attempts to use a port that another process has
_CONNECTION_SECONDS = 10.0  # age at which a connection is asked to end, ± 10 %; its calls are finished
_MAX_MESSAGE = 2000  # bytes of an error; clients accept 8 KB of trailers, in which a byte may take three
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class GrpcServer:
    """Answers calls at an address, once the address is available.

    Args:
        models: the models to call.
        owner: identifies the replicas that may share the port: those of one cluster on one machine.
        message_limit: largest message that is accepted, bytes.
        max_calls: most concurrent calls; others are refused.
    """

    def __init__(self, models: ModelCalls, *, owner: str, message_limit: int, max_calls: int) -> None:
        self._service = _Service(models)
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
                listener = await self._start(address)
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

    async def _start(self, address: Address) -> "_Listener":
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
        server.add_generic_rpc_handlers((self._service.handler(),))
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

    def __init__(self, models: ModelCalls) -> None:
        self._models = models

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
        handlers = {name: grpc.stream_unary_rpc_method_handler(_handler(name, call)) for name, call in calls.items()}
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


def _handler(
    name: str, call: Callable[[Any, Caller], Awaitable[Any]]
) -> Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], Awaitable[bytes]]:
    """The counterpart of HTTP's `EdgeMiddleware`: a handler from bytes to bytes, whose errors become statuses.

    When the client leaves, or its deadline passes, gRPC cancels the handler, and with it everything that it awaits.
    """

    async def handler(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = uuid.uuid4().hex
        client_id = metadata.get(CLIENT_ID_HEADER) or metadata.get("x-request-id", "")
        trailers = [("x-request-id", request_id), *([(CLIENT_ID_HEADER, client_id)] if client_id else [])]
        try:
            caller = authenticate(metadata)
            request = parse(f"{name}Request", await _read(context))
            answer: bytes = (await call(request, caller)).SerializeToString()
        except RequestError as error:
            refusal = copy(error)  # as in `EdgeMiddleware`
        except Exception:
            _log.exception("%s failed, request %s (%s)", name, request_id, client_id)
            refusal = refusals.internal_error(request_id)
        else:
            context.set_trailing_metadata(tuple(trailers))
            return answer
        if refusal.status in (429, 503):
            trailers.append(("grpc-retry-pushback-ms", str(refusals.RETRY_AFTER_S * 1000)))
        context.set_trailing_metadata(tuple(trailers))
        # Not `abort`, which would create a cycle of references too.
        context.set_code(_CODES.get(refusal.status, grpc.StatusCode.UNKNOWN))
        context.set_details(refusal.message.encode()[:_MAX_MESSAGE].decode(errors="ignore"))
        return b""

    return handler


async def _read(context: grpc.aio.ServicerContext) -> bytes:
    try:
        async with asyncio.timeout(refusals.BODY_SECONDS):
            message = await context.read()
    except TimeoutError as error:
        raise refusals.body_too_slow() from error
    if message is grpc.aio.EOF:
        raise RequestError("The call does not contain a message.", code="invalid_message")
    data: bytes = message
    return data
