"""The middleware of every HTTP application here: pure ASGI, the same in a gateway and on a replica.

It determines the caller, bounds a request's body (`incoming`), and answers every error in the shape of the API that was
called, whatever raised it. Requests are identified by `X-Request-ID`, which HAProxy or Serve gives to each request, and
Serve to each answer; a client's own id comes back as `X-Client-Request-ID`. It knows no model and no API: the shapes
are arguments.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.incoming import (
    ENCODINGS,
    BodyBudget,
    IncomingBody,
    Leftovers,
    Message,
    Receive,
    Scope,
    declared_length,
)
from maas_ray.serve.caller import authenticate

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_Value = TypeVar("_Value")
ErrorShape = Callable[[RequestError], dict[str, Any]]

CLIENT_ID_HEADER = "x-client-request-id"
"""The header with a client's own id of a request: OpenAI's name."""
MAX_CLIENT_ID = 200
"""Characters of it that are repeated."""
_BEFORE_THE_BODY = (408, 413, 415, 429)  # statuses of refusals that may leave the rest of the body unread
_log = logging.getLogger("ray.serve")


class EdgeMiddleware:
    """Wraps an ASGI application, which finds the caller in `scope["caller"]`.

    Args:
        app: raises `RequestError` for errors that the client can fix. It finds the `IncomingBody` in `scope["body"]`,
            and may release it early.
        body_limits: largest request body for each path prefix, bytes. In both mappings, the first prefix that fits
            counts.
        budget: bytes of large bodies that the process may hold at the same time.
        shapes: the shape of an error for each path prefix.
    """

    def __init__(
        self, app: App, *, body_limits: Mapping[str, int], budget: BodyBudget, shapes: Mapping[str, ErrorShape]
    ) -> None:
        self._app, self._limits, self._shapes = app, body_limits, shapes
        self._budget, self._leftovers = budget, Leftovers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        received = Headers(scope=scope)
        client_id = received.get(CLIENT_ID_HEADER, "")[:MAX_CLIENT_ID]

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            if client_id and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (CLIENT_ID_HEADER.encode(), client_id.encode("latin-1"))]
            await send(message)

        headers: dict[str, str] = {}
        body = None
        try:
            scope["caller"] = authenticate(received)
            limit = _of_prefix(self._limits, scope["path"])
            body = scope["body"] = IncomingBody(scope, receive, limit=limit, budget=self._budget)
            await self._app(scope, body.receive, watched_send)
        except ClientDisconnect:
            return
        except RequestError as error:
            # A copy, because the error's traceback refers to this frame, which would refer to the error: a cycle that
            # keeps the body, also a large one, in memory until the garbage collector runs.
            refusal = copy(error)
        except HTTPException as error:  # Starlette's router: no such path, no such method
            headers |= error.headers or {}
            refusal = _router_error(error, scope)
        except Exception:
            request_id = received.get("x-request-id", "")
            _log.exception("%s %s failed, request %s (%s)", scope["method"], scope["path"], request_id, client_id)
            refusal = refusals.internal_error(request_id)
        else:
            return
        finally:
            if body is not None:
                body.release()
        if started:
            raise refusal  # too late for a status: the connection breaks, which the client notices
        unread = refusal.status in _BEFORE_THE_BODY and not (body and body.complete)
        headers |= _headers(refusal, unread=unread)
        response = JSONResponse(_of_prefix(self._shapes, scope["path"])(refusal), refusal.status, headers)
        if unread and refusal.status != 408:
            await self._send_and_drop(response, scope, receive, watched_send)
        else:
            await response(scope, receive, watched_send)

    async def _send_and_drop(self, response: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole response, then drop what still arrives, then let the connection be closed."""
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await self._leftovers.drop(receive, declared_length(Headers(scope=scope)))
        await send({"type": "http.response.body", "body": b""})


def _headers(refusal: RequestError, *, unread: bool) -> dict[str, str]:
    headers = {}
    if refusal.status in (429, 503):
        headers["retry-after"] = str(refusals.RETRY_AFTER_S)
    if refusal.status == 504:
        headers["x-should-retry"] = "false"  # OpenAI's clients would send the request again, to wait as long again
    if refusal.status == 415:
        headers["accept-encoding"] = ", ".join(ENCODINGS)
    if unread:
        headers["connection"] = "close"
    return headers


def _of_prefix(values: Mapping[str, _Value], path: str) -> _Value:
    return next(value for prefix, value in values.items() if path.startswith(prefix))


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
