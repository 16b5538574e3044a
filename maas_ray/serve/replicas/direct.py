"""The direct path of a model: its replicas answer `/models/NAME` and `/v2/models/NAME` themselves, in one hop.

A replica serves the gateway's own HTTP application, middleware included, over `ModelCalls` to a single model: itself.
Serve gives the replica of every application a port for HTTP. A request there answers 404 unless the endpoint is
`direct`, so that nobody can go round the gateway. HAProxy learns a moment later that a path has moved to other
replicas, so those that had it still answer meanwhile.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, closing
from typing import Any, TypeVar

from starlette.responses import JSONResponse

from maas_ray.errors import RequestError
from maas_ray.ray_private.serve import bound_read_ahead
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.incoming import Message, Receive, Scope
from maas_ray.serve.api.middleware import App, Send
from maas_ray.serve.api.model_calls import (
    Answer,
    checked,
    find_route,
    refuse_adapter,
    translated_failures,
    with_adapter,
)
from maas_ray.serve.api.open_inference.tensors import InferBody, error_shape
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.api.relay import RELAY_HEADER
from maas_ray.serve.caller import Caller
from maas_ray.serve.deadline import Deadline
from maas_ray.serve.routes import Route, direct_path
from maas_ray.serve.spec import GatewayArgs
from maas_ray.serve.text.types import Delta, TextRequest

_Result = TypeVar("_Result")
_RELAY_HEADER = RELAY_HEADER.encode()
_NO_LIMIT = 2**40  # bytes: the gateway has limits
_LEAVING_S = 60.0  # time for which requests still come after the path has moved; HAProxy usually takes a second


class SingleModel:
    """`ModelCalls` to the model of this replica.

    Args:
        replica: answers; called in this process.
        route: the route to it.

    Attributes:
        options: of `create_app`.
    """

    def __init__(self, replica: Any, route: Route) -> None:
        self._replica = replica
        self._name, self._routes = route.name, _by_name(route)
        self.options = GatewayArgs().http_options()
        self._direct, self._leaving = False, 0.0

    @property
    def on_path(self) -> bool:
        """True if the direct path leads here, or has until a moment ago."""
        return self._direct or time.monotonic() < self._leaving

    @property
    def name(self) -> str:
        """The model's public name."""
        return self._name

    def update(self, route: Route, *, direct: bool = False, options: dict[str, Any] | None = None) -> None:
        """Replace the route, when options change for which replicas stay, such as the timeout.

        Args:
            route: the route.
            direct: the direct path leads here.
            options: of `create_app`, as the gateway has them. None: the defaults.
        """
        if self._direct and not direct:
            self._leaving = time.monotonic() + _LEAVING_S
        self._name, self._routes, self._direct = route.name, _by_name(route), direct
        options = options or GatewayArgs().http_options()
        if options != self.options:
            self.options = options

    def routes(self, *, caller: Caller) -> list[Route]:
        return list(self._routes.values())

    def route(self, name: str, version: str = "", *, caller: Caller) -> Route:
        return find_route(self._routes, name, version)

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        return await _in_time(route, self._replica.complete(with_adapter(request, route), caller))

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        refuse_adapter(route)
        return await _in_time(route, self._replica.infer(body, caller))

    async def predict(self, route: Route, body: PredictBody, *, caller: Caller) -> Answer[bytes]:
        refuse_adapter(route)
        return await _in_time(route, self._replica.predict(body, caller))

    async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        request = with_adapter(request, route)
        with closing(Deadline(route.timeout_s)) as deadline:
            async with aclosing(self._replica.generate(request, caller)) as deltas:
                while True:
                    with translated_failures(route), deadline:
                        delta = await anext(deltas, None)
                    if delta is None:
                        return
                    yield checked(delta)

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        return True


def _by_name(route: Route) -> dict[str, Route]:
    return {one.name: one for one in route.expanded()}


async def _in_time(route: Route, result: Awaitable[_Result | RequestError]) -> _Result:
    with translated_failures(route):
        async with asyncio.timeout(route.timeout_s):
            return checked(await result)


def create_single_app(model: SingleModel, secret: str = "") -> App:
    """The HTTP application of a replica.

    Args:
        model: the replica's.
        secret: requests with it in `RELAY_HEADER` come from a gateway, which has checked them; see `api.relay`. Empty:
            none do.
    """
    bound_read_ahead()
    options = model.options
    api = create_app(model, **options)
    relayed = _marked(create_app(model, body_limit=_NO_LIMIT))
    expected = secret.encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal api, options
        if model.options is not options:
            options = model.options
            api = create_app(model, **options)
        # Serve passes the path that leads to the application as `root_path`, which routers remove; here paths are
        # complete. An application that no path leads to has none.
        root = scope.get("root_path", "")
        scope = {**scope, "root_path": ""}
        given = next((value for name, value in scope.get("headers", ()) if name == _RELAY_HEADER), b"")
        if secret and hmac.compare_digest(given, expected):
            await relayed(scope, receive, send)
        else:
            is_direct = root.endswith(direct_path(model.name))
            await (api if is_direct or model.on_path else _not_direct)(scope, receive, send)

    return app


def _marked(app: App) -> App:
    """The application, whose answers say that it made them, not Serve."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        async def mark(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_RELAY_HEADER, b"1")]
            await send(message)

        await app(scope, receive, mark)

    return marked


async def _not_direct(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        refusal = RequestError("This replica answers its gateway only. Ask the gateway.", code="not_found", status=404)
        await JSONResponse(error_shape(refusal), refusal.status)(scope, receive, send)
