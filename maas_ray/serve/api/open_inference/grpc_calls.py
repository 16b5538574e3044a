"""Handlers of gRPC calls, from bytes to bytes: the counterpart of HTTP's `EdgeMiddleware`."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from typing import Any

import grpc

from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.incoming import UNCOUNTED, BodyBudget
from maas_ray.serve.api.middleware import CLIENT_ID_HEADER, MAX_CLIENT_ID
from maas_ray.serve.api.open_inference.grpc_messages import parse
from maas_ray.serve.caller import Caller, authenticate

_log = logging.getLogger("ray.serve")
_AT_ONCE_SECONDS = 0.5  # in which most messages are complete
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


class Messages:
    """The requests' messages, limited in time and in memory.

    gRPC tells the size of a message only with the whole message. Therefore messages that arrive at once take their own
    size from the budget, afterwards; all others take the largest size before the rest of them may arrive.

    Args:
        limit: largest message, bytes.
        budget: of this process.
    """

    def __init__(self, limit: int, budget: BodyBudget) -> None:
        self._largest, self._budget = max(0, limit - UNCOUNTED), budget

    @asynccontextmanager
    async def of(self, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """The message of a call, which counts while the block runs.

        Raises:
            RequestError: it takes too long, the process holds too many large messages, or there is none.
        """
        taken = 0
        reading = asyncio.ensure_future(context.read())
        try:
            await asyncio.wait({reading}, timeout=_AT_ONCE_SECONDS)
            if not reading.done():
                self._take(self._largest)
                taken = self._largest
                await asyncio.wait({reading}, timeout=refusals.BODY_SECONDS - _AT_ONCE_SECONDS)
                if not reading.done():
                    raise refusals.body_too_slow()
            message = reading.result()
            if message is grpc.aio.EOF:
                raise RequestError("The call does not contain a message.", code="invalid_message")
            size = max(0, len(message) - UNCOUNTED)
            self._budget.give_back(taken)
            taken = 0
            self._take(size)
            taken = size
            yield message
        finally:
            reading.cancel()
            self._budget.give_back(taken)

    def _take(self, count: int) -> None:
        if not self._budget.take(count):
            raise refusals.too_many_bodies()


def answering(
    name: str, call: Callable[[Any, Caller], Awaitable[Any]], messages: Messages
) -> Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], Awaitable[bytes]]:
    """A handler whose errors become statuses.

    When the client leaves, or its deadline passes, gRPC cancels the handler, and with it everything that it awaits.
    """

    async def handler(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = uuid.uuid4().hex
        client_id = (metadata.get(CLIENT_ID_HEADER) or metadata.get("x-request-id", ""))[:MAX_CLIENT_ID]
        trailers = [("x-request-id", request_id), *([(CLIENT_ID_HEADER, client_id)] if client_id else [])]
        try:
            caller = authenticate(metadata)
            async with messages.of(context) as message:
                request = parse(f"{name}Request", message)
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
