"""gRPC's health service (`grpc.health.v1`), which Kubernetes and Envoy ask: of the server, and of each model.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from maas_ray.errors import ModelNotFoundError, RequestError
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.open_inference.grpc_calls import Messages, answering
from maas_ray.serve.api.open_inference.grpc_messages import MESSAGES, PACKAGE, parse
from maas_ray.serve.caller import Caller, authenticate

SERVICE = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3
_SERVERS = ("", f"{PACKAGE}.GRPCInferenceService")  # names of the server itself
_WATCH_SECONDS = 1.0
_MAX_WATCHES = 100  # each occupies one of the server's concurrent calls for as long as its client likes


class Health:
    """The calls of the service. A service is the server, or a public model name.

    Args:
        models: the models.
        messages: the requests' messages.
        stop: set when the server is about to stop.
    """

    def __init__(self, models: ModelCalls, messages: Messages, stop: asyncio.Event) -> None:
        self._models, self._messages, self._stop, self._watches = models, messages, stop, 0

    def handler(self) -> grpc.GenericRpcHandler:
        check = grpc.stream_unary_rpc_method_handler(answering("HealthCheck", self.check, self._messages))
        watch = grpc.stream_stream_rpc_method_handler(self.watch)
        return grpc.method_handlers_generic_handler(SERVICE, {"Check": check, "Watch": watch})

    async def check(self, request: Any, caller: Caller) -> Any:
        """The status now; no such model is an error."""
        return MESSAGES["HealthCheckResponse"](status=await self._status(request.service, caller))

    async def watch(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """The status now, and whenever it changes, until the server stops."""
        if self._watches == _MAX_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"There are {_MAX_WATCHES} watches already.")
        self._watches += 1
        try:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            caller, last = authenticate(metadata), None
            async with self._messages.of(context) as message:
                service = parse("HealthCheckRequest", message).service
            while not self._stop.is_set():
                try:
                    status = await self._status(service, caller)
                except ModelNotFoundError:
                    status = _SERVICE_UNKNOWN
                if status != last:
                    yield MESSAGES["HealthCheckResponse"](status=status).SerializeToString()
                    last = status
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _WATCH_SECONDS)
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        finally:
            self._watches -= 1
        yield MESSAGES["HealthCheckResponse"](status=_NOT_SERVING).SerializeToString()
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details("The server stops. Connect again.")

    async def _status(self, service: str, caller: Caller) -> int:
        if service in _SERVERS:
            return _SERVING
        ready = await self._models.ready(self._models.route(service, caller=caller), caller=caller)
        return _SERVING if ready else _NOT_SERVING
