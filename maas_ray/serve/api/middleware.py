"""The one layer around every HTTP application here: pure ASGI, the same in a gateway and in a model app.

It bounds a request's body, and how long that may take to come, while it is read, and gives every error the
shape of the API that was asked, whatever raised it. Whoever calls is identified by `X-Request-ID`, which Serve
adds to each request and each answer. It knows no model and no API: the shapes are given to it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from copy import copy
from typing import Any

import pydantic_core
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from maas_ray.errors import OverloadedError, RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorShape = Callable[[RequestError], dict[str, Any]]

_log = logging.getLogger("ray.serve")
RETRY_AFTER_S = 1
BACKPRESSURE = {"status_code": 429, "retry_after_s": RETRY_AFTER_S}
"""What Serve answers where an application's own queue is full."""
BODY_SECONDS = 120.0
"""Longest that a request's body may take to come: it holds a place that others could use."""


class Guard:
    """Wraps an ASGI application.

    Args:
        app: what answers; raises `RequestError` for what the client can mend.
        body_limit: largest request body, bytes.
        shapes: for each path prefix, how an error looks there; the first that fits is taken.
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
            await self._app(scope, _bounded(scope, receive, self._limit), watched_send)
        except RequestError as error:
            # Without the traceback, whose frames have this one, which would have it: a cycle, in which the body, also
            # a large one, would wait for the garbage collector.
            answer = copy(error)
        except HTTPException as error:  # Starlette's router: no such path, no such method
            headers |= error.headers or {}
            answer = _of_router(error, scope)
        except Exception:
            request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            _log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
            answer = RequestError(
                f"The server failed to answer; its log tells why. Request id: {request_id}.",
                code="internal_error",
                status=500,
            )
        else:
            return
        if started:
            raise answer  # too late for a status: the connection breaks, which the client notices
        if answer.status in (429, 503):
            headers["retry-after"] = str(RETRY_AFTER_S)
        if answer.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        shape = next(shape for prefix, shape in self._shapes.items() if scope["path"].startswith(prefix))
        await JSONResponse(shape(answer), answer.status, headers)(scope, receive, send)


def parse_json(body: bytes) -> Any:
    """A request's JSON document.

    Raises:
        RequestError: it is not JSON; says where.
    """
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error


def _bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive` that refuses a body over the limit, as soon as that is known, and one that takes too long to come."""
    read, whole = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def bounded() -> Message:
        nonlocal read, whole
        if whole:
            return await receive()
        if read == 0:
            declared = dict(scope["headers"]).get(b"content-length", b"")
            if declared.isdigit() and int(declared) > limit:
                raise _too_large(limit)
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise too_slow() from error
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > limit:
                raise _too_large(limit)
        return message

    return bounded


def too_slow() -> RequestError:
    """The answer to a request whose body does not come."""
    return RequestError(
        f"The body had not come within {BODY_SECONDS:g} s; the request was given up.",
        code="request_timeout",
        status=408,
    )


def _too_large(limit: int) -> RequestError:
    return RequestError(
        f"The body is larger than the {limit:,} bytes allowed here.", code="request_too_large", status=413
    )


def _of_router(error: HTTPException, scope: Scope) -> RequestError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "other methods")
        return RequestError(
            f"{scope['path']} takes {allowed}, not {scope['method']}.", code="method_not_allowed", status=405
        )
    return RequestError(f"There is nothing at {scope['path']}.", code="not_found", status=error.status_code)


def overloaded() -> OverloadedError:
    """The answer to one request too many."""
    return OverloadedError(f"All replicas are busy and the queue is full. Try again in {RETRY_AFTER_S} s.")
