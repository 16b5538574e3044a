"""A model's own path: its replicas answer `/v2/models/NAME` themselves, without a hop over the gateway.

A replica gets the gateway's own HTTP application, guard included, over a `Models` that has one model: itself.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from maas_ray.errors import RequestError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App, Receive, Scope, Send
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.calls import checked, find, translated
from maas_ray.serve.routes import Route
from maas_ray.serve.spec import GatewayArgs
from maas_ray.serve.text.codec import Delta, TextRequest

_Answer = TypeVar("_Answer")


class SingleModel:
    """The model of this replica, asked as `maas_ray.serve.calls.Models` asks all.

    Args:
        replica: what answers.
        route: to it.
    """

    def __init__(self, replica: Any, route: Route) -> None:
        self._replica, self._route = replica, route

    def take(self, route: Route) -> None:
        """Take over what changes while replicas stay, such as the timeout."""
        self._route = route

    def routes(self) -> list[Route]:
        return [self._route]

    def route(self, name: str, version: str = "") -> Route:
        return find({self._route.name: self._route}, name, version)

    async def complete(self, route: Route, request: TextRequest) -> list[Delta]:
        return await _in_time(route, self._replica.complete(request))

    async def infer(self, route: Route, body: InferBody) -> InferBody:
        return await _in_time(route, self._replica.infer(body))

    async def predict(self, route: Route, body: PredictBody) -> bytes:
        return await _in_time(route, self._replica.predict(body))

    async def stream(self, route: Route, request: TextRequest) -> AsyncGenerator[Delta, None]:
        deadline = asyncio.get_running_loop().time() + route.timeout_s
        async with aclosing(self._replica.generate(request)) as deltas:
            while True:
                with translated(route):
                    try:
                        async with asyncio.timeout_at(deadline):
                            delta = await anext(deltas)
                    except StopAsyncIteration:
                        return
                yield checked(delta)

    async def ready(self, route: Route) -> bool:
        return True


async def _in_time(route: Route, answer: Awaitable[_Answer | RequestError]) -> _Answer:
    with translated(route):
        async with asyncio.timeout(route.timeout_s):
            return checked(await answer)


def create_single_app(model: Any) -> App:
    """The HTTP application of a replica, for `SingleModel`."""
    api = create_app(model, body_limit=int(GatewayArgs().body_limit_mb * 1e6))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Serve sets the application's prefix as `root_path`, which routers take off; the paths here are whole ones.
        await api({**scope, "root_path": ""}, receive, send)

    return app
