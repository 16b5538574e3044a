"""The middleware of every HTTP application here: pure ASGI, the same in a gateway and on a replica.

It determines the caller, bounds the size of a request's body and the time in which it must arrive, and answers every
error in the shape of the API that was called, whatever raised it. Requests are identified by `X-Request-ID`, which
Serve adds to each request and each answer. It knows no model and no API: the shapes are arguments.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from copy import copy
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.caller import authenticate

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorShape = Callable[[RequestError], dict[str, Any]]

_log = logging.getLogger("ray.serve")


class EdgeMiddleware:
    """Wraps an ASGI application, which finds the caller in `scope["caller"]`.

    Args:
        app: raises `RequestError` for errors that the client can fix.
        body_limit: largest request body, bytes.
        shapes: the shape of an error for each path prefix; the first prefix that fits counts.
    """

    def __init__(self, app: App, *, body_limit: int, shapes: Mapping[str, ErrorShape]) -> None:
        self._app, self._limit, self._shapes = app, body_limit, shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        headers: dict[str, str] = {}
        try:
            scope["caller"] = authenticate(Headers(scope=scope))
            await self._app(scope, _bounded(scope, receive, self._limit), watched_send)
        except RequestError as error:
            # A copy, because the error's traceback refers to this frame, which would refer to the error: a cycle that
            # keeps the body, also a large one, in memory until the garbage collector runs.
            refusal = copy(error)
        except HTTPException as error:  # Starlette's router: no such path, no such method
            headers |= error.headers or {}
            refusal = _router_error(error, scope)
        except Exception:
            request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            _log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
            refusal = refusals.internal_error(request_id)
        else:
            return
        if started:
            raise refusal  # too late for a status: the connection breaks, which the client notices
        if refusal.status in (429, 503):
            headers["retry-after"] = str(refusals.RETRY_AFTER_S)
        if refusal.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read, or not to its end
        shape = next(shape for prefix, shape in self._shapes.items() if scope["path"].startswith(prefix))
        response = JSONResponse(shape(refusal), refusal.status, headers)
        if refusal.status == 413:
            await _send_and_drain(response, receive, send)
        else:
            await response(scope, receive, send)


async def _send_and_drain(response: JSONResponse, receive: Receive, send: Send) -> None:
    """Send the response, and drop what still arrives before the connection is closed.

    Many clients read nothing before they have sent everything. If the connection closed at once, the proxy before this
    process would at times stop reading without closing its own side, and the client would wait for its timeout.
    """
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    loop, more = asyncio.get_running_loop(), True
    deadline = loop.time() + refusals.DRAIN_SECONDS
    while more and loop.time() < deadline:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                more = (await receive()).get("more_body", False)  # a client that is gone has no more either
    await send({"type": "http.response.body", "body": b""})


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive` that refuses a body over the limit, as soon as that is known, or one that takes too long to arrive."""
    size, complete = 0, False
    deadline = asyncio.get_running_loop().time() + refusals.BODY_SECONDS

    async def bounded() -> Message:
        nonlocal size, complete
        if complete:
            return await receive()
        if size == 0:
            declared = dict(scope["headers"]).get(b"content-length", b"")
            if declared.isdigit() and int(declared) > limit:
                raise refusals.body_too_large(limit)
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise refusals.body_too_slow() from error
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > limit:
                raise refusals.body_too_large(limit)
        return message

    return bounded


def _router_error(error: HTTPException, scope: Scope) -> RequestError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        return RequestError(
            f"{scope['path']} takes {allowed}, not {scope['method']}.", code="method_not_allowed", status=405
        )
    return RequestError(
        f"There is nothing at {scope['path']}; /openapi.json lists the paths.",
        code="not_found",
        status=error.status_code,
    )
