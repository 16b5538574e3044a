"""Requests passed on as bytes, to replicas that answer HTTP themselves.

A replica has the gateway's own HTTP application (`replicas.direct`), so its answer is the answer. The gateway reads
only the model's name, chooses a replica, and passes bytes on in both directions. What it cannot pass on, the endpoint
answers over Serve handles: models at zero, shared replicas, and whatever no replica takes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import aiohttp
from starlette.requests import Request
from starlette.responses import Response
from yarl import URL

from maas_ray.serve.api import refusals
from maas_ray.serve.api.incoming import Message, Receive, Scope
from maas_ray.serve.api.middleware import Send
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER
from maas_ray.serve.api.openai.responses import error_event
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route, direct_path

RELAY_HEADER = "x-maas-relay"
"""A request's header with the replica's secret; an answer's header that says that the application made it."""
_CONNECT_SECONDS = 2.0
_KEEP_ALIVE_SECONDS = 15.0  # less than replicas keep idle connections
_PASSED_ON = frozenset(
    name.lower().encode()
    for name in ("accept-encoding", "content-type", "traceparent", "tracestate", "x-request-id", LENGTH_HEADER)
)
# These belong to the connection, or are made again by the gateway's own server.
_NOT_PASSED_ON = frozenset(
    (b"connection", b"date", b"keep-alive", b"server", b"transfer-encoding", b"x-request-id", RELAY_HEADER.encode())
)
_FULL = 429
_EVENT_END = b"\n\n"
_DIED = "the replica that worked on this request died"
_PATH = "/:@!$&'()*+,;=~"  # characters that a path may hold as they are, RFC 3986


class Upstream(Protocol):
    """A replica that answers HTTP.

    Attributes:
        url: of its server, up to the path.
        secret: proves that a gateway asks.
        in_flight: requests of this gateway that it has not answered yet.
    """

    url: str
    secret: str
    in_flight: int

    def avoid(self) -> None:
        """Choose this replica no more for a while: it cannot be reached."""


@dataclass(frozen=True)
class Asked:
    """The part of a request that the gateway must know.

    Args:
        name: public model name.
        version: the number that the version must have. Empty: any.
    """

    name: str
    version: str = ""


Endpoint = Callable[[Request], Awaitable[Response]]


class Relay:
    """Passes requests on.

    Args:
        route: the route of what was asked, for a caller. Raises `ModelNotFoundError`.
        choose: the replica to ask along a route, except those whose URL was tried. None: there is none.
    """

    def __init__(
        self, route: Callable[[Asked, Caller], Route], choose: Callable[[Route, Caller, set[str]], Upstream | None]
    ) -> None:
        self._route, self._choose = route, choose
        self._session: aiohttp.ClientSession | None = None

    def before(self, endpoint: Endpoint, read: Callable[[Request, bytes], Awaitable[Asked | None]]) -> Endpoint:
        """The endpoint, which only gets the requests that could not be passed on.

        Args:
            endpoint: answers over `ModelCalls`.
            read: finds what is asked, in a request and its body. None: the endpoint shall answer.
        """

        async def answer(request: Request) -> Response:
            body = await read_body(request)
            asked = await read(request, body)
            is_own = asked and request.scope["model"] in ("", asked.name)  # else the URL is another model's
            response = await self._answer(request, body, asked) if asked and is_own else None
            if response is None:
                return await endpoint(Request(request.scope, _again(body, request.receive)))
            request.scope["body"].release()
            return response

        return answer

    async def close(self) -> None:
        """Close idle connections."""
        if self._session is not None:
            await self._session.close()

    async def _answer(self, request: Request, body: bytes, asked: Asked) -> Response | None:
        caller: Caller = request.scope["caller"]
        deadline, tried = 0.0, set[str]()
        died, full = False, False
        while True:
            route = self._route(asked, caller)  # it may have moved
            deadline = deadline or asyncio.get_running_loop().time() + route.timeout_s
            upstream = self._choose(route, caller, tried)
            if upstream is None:
                if full:
                    raise refusals.overloaded()
                return None
            tried.add(upstream.url)
            answer = _Relayed(route, upstream, deadline)
            try:
                async with asyncio.timeout_at(deadline):
                    status = await answer.open(self._client(), request, body)
            except TimeoutError as error:
                answer.close()
                if isinstance(error, aiohttp.ConnectionTimeoutError):
                    upstream.avoid()
                    continue
                raise refusals.timed_out(route.name, route.timeout_s) from error
            except (aiohttp.ClientError, OSError) as error:
                answer.close()
                upstream.avoid()
                if isinstance(error, aiohttp.ClientConnectorError):
                    continue  # nothing was sent, so the request is not what ended it
                # Answering changes nothing in a model, so another replica may answer. But only one more: the request
                # may be what kills replicas.
                if died:
                    raise refusals.unavailable(route.name, _DIED) from error
                died = True
            except BaseException:
                answer.close()
                raise
            else:
                # A replica may hear of an adapter later than the gateway.
                if status == 0 and not (route.adapter and answer.status_code == 404):
                    return answer
                answer.close()
                if status != _FULL:
                    return None
                full = True

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "user-agent"),
                auto_decompress=False,
            )
        return self._session


class _Relayed(Response):
    """A replica's answer, on its way to the client.

    Args:
        route: the route of the request.
        upstream: the replica.
        deadline: time of the loop at which the answer must be complete.
    """

    def __init__(self, route: Route, upstream: Upstream, deadline: float) -> None:
        self._route, self._deadline = route, deadline
        self._upstream: Upstream | None = upstream
        self._answer: aiohttp.ClientResponse | None = None
        self._first = b""
        self._whole = False
        self.background = None
        upstream.in_flight += 1

    async def open(self, client: aiohttp.ClientSession, request: Request, body: bytes) -> int:
        """Send the request, and wait for the first bytes of the answer; for all of them, if their number is known.

        Returns:
            0. Or the status with which Serve refused, before the request came to the application.

        Raises:
            aiohttp.ClientError, OSError: the replica cannot be reached, or died.
        """
        scope, upstream = request.scope, self._upstream
        assert upstream is not None  # noqa: S101  not closed yet
        headers = {
            name.decode("ascii"): value.decode("latin-1") for name, value in scope["headers"] if name in _PASSED_ON
        }
        headers[RELAY_HEADER] = upstream.secret
        # A replica on a direct path is asked below it, and the others do not mind.
        path = direct_path(self._route.parent or self._route.name) + scope["path"]
        url = URL(upstream.url + quote(path, safe=_PATH), encoded=True)
        answer = self._answer = await client.request(scope["method"], url, data=body, headers=headers)
        if RELAY_HEADER not in answer.headers:
            return answer.status
        self._whole = answer.content_length is not None
        self._first = await (answer.read() if self._whole else answer.content.readany())
        self.status_code = answer.status
        self.raw_headers = [(name.lower(), value) for name, value in answer.raw_headers]
        self.raw_headers = [header for header in self.raw_headers if header[0] not in _NOT_PASSED_ON]
        return 0

    def close(self) -> None:
        """End the request on the replica, if it is not complete. May be called again."""
        if self._upstream is not None:
            self._upstream.in_flight -= 1
            self._upstream = None
        if self._answer is not None:
            self._answer.close()  # returns the connection to the pool if the answer was read to its end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if self._whole:
                await send({"type": "http.response.body", "body": self._first})
            else:
                await self._pass_on(send)
        finally:
            self.close()

    async def _pass_on(self, send: Send) -> None:
        """A stream of events, in the pieces that have arrived together.

        Only whole events are passed on, so that an error is an event of its own wherever the stream breaks.
        """
        assert self._answer is not None  # noqa: S101  `open` has set it
        arrived = self._first
        try:
            async with asyncio.timeout_at(self._deadline):
                while True:
                    events, end, arrived = arrived.rpartition(_EVENT_END)
                    if end:
                        await send({"type": "http.response.body", "body": events + end, "more_body": True})
                    if not (piece := await self._answer.content.readany()):
                        break
                    arrived += piece
        except TimeoutError:
            arrived = error_event(refusals.timed_out(self._route.name, self._route.timeout_s))
        except (aiohttp.ClientError, OSError):
            arrived = error_event(refusals.unavailable(self._route.name, _DIED))
        await send({"type": "http.response.body", "body": arrived})


async def read_body(request: Request) -> bytes:
    """The body. Starlette's own method would keep it for as long as the request."""
    return b"".join([piece async for piece in request.stream()])


def _again(body: bytes, receive: Receive) -> Receive:
    """ASGI's `receive` for a body that was read already."""
    given = False

    async def replay() -> Message:
        nonlocal given, body
        if given:
            return await receive()
        given, data, body = True, body, b""
        return {"type": "http.request", "body": data, "more_body": False}

    return replay
