"""The model applications, as the gateway sees them: named, called through handles, their failures told apart.

What goes wrong becomes a `RequestError` with the status that is true: the client's fault (as the model
says), no such model, full, too slow, or not there. Knows nothing of HTTP or of any API's shapes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from maas_ray.errors import DeploymentError, ModelNotFoundError, RequestError
from maas_ray.serve.api.middleware import overloaded
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.engines import Adapter
from maas_ray.serve.routes import Route, Table, Target, pick
from maas_ray.serve.text.codec import Delta, TextRequest

_log = logging.getLogger("ray.serve")
_STATUS_SECONDS = 1.0


_Answer = TypeVar("_Answer")


class ModelCalls(Protocol):
    """Models that an HTTP application can ask: all of a gateway's (`Models`), or the one of a replica."""

    def routes(self) -> list[Route]:
        """All routes, by name."""

    def route(self, name: str, version: str = "") -> Route:
        """The route of a public model name; of a version, where one is named.

        Raises:
            ModelNotFoundError: there is none.
        """

    async def complete(self, route: Route, request: TextRequest) -> list[Delta]:
        """The whole answers, `n` to each prompt."""

    def stream(self, route: Route, request: TextRequest) -> AsyncGenerator[Delta, None]:
        """The answers as they grow. Closing it cancels the generation."""

    async def infer(self, route: Route, body: InferBody) -> InferBody:
        """The answer to an Open Inference request."""

    async def predict(self, route: Route, body: PredictBody) -> bytes:
        """The answer to rows in the task's words: a JSON document."""

    async def ready(self, route: Route) -> bool:
        """Whether the model works."""


@dataclass(frozen=True)
class _Handles:
    """Handles bound to a method each: binding one costs as much as calling it."""

    complete: Any
    generate: Any
    infer: Any
    predict: Any

    @classmethod
    def of(cls, handle: Any, shared: str) -> "_Handles":
        if shared:
            handle = handle.options(multiplexed_model_id=shared)
        return cls(handle.complete, handle.options(method_name="generate", stream=True), handle.infer, handle.predict)


class Models:
    """The routing table, and the calls."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._applications: dict[str, Any] = {}  # one handle for each: it has a router and connections
        self._handles: dict[tuple[str, str], _Handles] = {}
        self._waiting: dict[str, set[Any]] = {}
        self._status: tuple[float, dict[str, bool]] = (0.0, {})

    async def update(self, table: Table) -> None:
        """Take a new table. Requests that a replica has stay there; those that still wait for one move along."""
        routes = {one.name: one for route in table for one in route.expanded()}
        applications = {name for route in table for name in route.applications}
        for application in applications - set(self._applications):
            await self._connect(application)
        self._routes = routes
        self._applications = {name: one for name, one in self._applications.items() if name in applications}
        bound = {(target.application, target.shared) for route in table for target in route.targets}
        self._handles = {key: handles for key, handles in self._handles.items() if key in bound}
        for application in self._waiting.keys() - applications:
            waiting = self._waiting.pop(application)
            for response in list(waiting):
                # Serve would let it wait for ever for an application that is deleted. Done means that a replica has it.
                if response._replica_result_future.cancel():
                    waiting.discard(response)

    async def close(self) -> None:
        """End what the calls left running in this process, for one that goes on without them."""
        for handle in self._applications.values():
            await handle.shutdown_async()

    def routes(self) -> list[Route]:
        return sorted(self._routes.values(), key=lambda route: route.name)

    def route(self, name: str, version: str = "") -> Route:
        return find(self._routes, name, version)

    async def complete(self, route: Route, request: TextRequest) -> list[Delta]:
        answers: list[Delta] = await self._call(route, "complete", request)
        return answers

    async def infer(self, route: Route, body: InferBody) -> InferBody:
        _refuse_adapter(route)
        answer: InferBody = await self._call(route, "infer", body)
        return answer

    async def predict(self, route: Route, body: PredictBody) -> bytes:
        _refuse_adapter(route)
        answer: bytes = await self._call(route, "predict", body)
        return answer

    async def stream(self, route: Route, request: TextRequest) -> AsyncGenerator[Delta, None]:
        deadline = asyncio.get_running_loop().time() + route.timeout_s
        response: Any = None
        try:
            while True:
                with translated(route):
                    try:
                        async with asyncio.timeout_at(deadline):
                            if response is None:
                                delta, response = await self._ask(route, "generate", request)
                            else:
                                delta = await anext(response)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        if response is not None:
                            response.cancel()
                        raise
                yield checked(delta)
        except (asyncio.CancelledError, GeneratorExit):
            if response is not None:
                response.cancel()
            raise

    async def _call(self, route: Route, method: str, argument: Any) -> Any:
        with translated(route):
            async with asyncio.timeout(route.timeout_s):
                answer, _ = await self._ask(route, method, argument)
        return checked(answer)

    async def _ask(self, route: Route, method: str, argument: Any) -> tuple[Any, Any]:
        """The answer, or the first piece of a stream; and Serve's response, which has the further pieces.

        Answering changes nothing in a model, so what has no answer yet can be asked again: once, if the replica died,
        as it may be this very request that kills them; and if the route moved on before any replica took it.
        """
        from ray.exceptions import RayActorError

        again = True
        while True:
            if route.adapter and isinstance(argument, TextRequest):
                argument = replace(argument, adapter=Adapter(route.adapter.uri, route.adapter.digest))
            target = pick(route)
            response = getattr(await self._bound(route, target), method).remote(argument)
            waiting = self._waiting.setdefault(target.application, set())
            waiting.add(response)
            try:
                return await (anext(response) if method == "generate" else response), response
            except RayActorError:
                if not again:
                    raise
                again = False
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if response in waiting or (task and task.cancelling()):
                    response.cancel()
                    raise
                route = self.route(route.name)
            finally:
                waiting.discard(response)

    async def ready(self, route: Route) -> bool:
        """As Serve's controller sees the model's application."""
        from ray import serve

        taken, ready = self._status
        if time.monotonic() - taken > _STATUS_SECONDS:
            applications = (await asyncio.to_thread(serve.status)).applications
            ready = {
                name: status.status == "RUNNING"
                or all(one.replica_states.get("RUNNING", 0) > 0 for one in status.deployments.values())
                for name, status in applications.items()
            }
            self._status = (time.monotonic(), ready)
        return ready.get(route.target.application, False)

    async def _bound(self, route: Route, target: Target) -> _Handles:
        key = (target.application, target.shared)
        handles = self._handles.get(key)
        if handles is None:
            if target.application not in self._applications:
                await self._connect(target.application)
            handle = self._applications.get(target.application)
            if handle is None:
                raise _unavailable(route, "its application is not running")
            handles = self._handles[key] = _Handles.of(handle, target.shared)
        return handles

    async def _connect(self, application: str) -> None:
        from ray.serve.exceptions import RayServeException

        try:
            self._applications[application] = await asyncio.to_thread(_handle, application)
        except RayServeException as error:
            _log.warning("no handle for %s: %s", application, error)


def _handle(application: str) -> Any:
    from ray import serve

    return serve.get_app_handle(application).options()  # which starts its router


def find(routes: Mapping[str, Route], name: str, version: str) -> Route:
    """The route of a public model name; see `ModelCalls.route`."""
    try:
        route = routes[name]
    except KeyError:
        raise ModelNotFoundError(name, sorted(routes)) from None
    if version not in ("", route.number):
        raise ModelNotFoundError(f"{name} version {version}", [f"{name} version {route.number}"])
    return route


def _refuse_adapter(route: Route) -> None:
    """A body that is handed on unread cannot say which adapter it is for: the base would answer in its place."""
    if route.adapter:
        raise RequestError(
            f"{route.name!r} is an adapter; ask it at /v1/completions or /v1/chat/completions.",
            param="model",
            code="model_not_supported",
        )


def checked(answer: _Answer | RequestError) -> _Answer:
    """A replica's answer; a client's error is an answer too, since Serve logs whatever is raised."""
    if isinstance(answer, RequestError):
        raise answer
    return answer


def _unavailable(route: Route, why: str) -> RequestError:
    return RequestError(
        f"The model {route.name!r} is unavailable: {why}. Try again later.", code="model_unavailable", status=503
    )


@contextmanager
def translated(route: Route) -> Iterator[None]:
    """Failures of a call as what a client is told."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    try:
        yield
    except TimeoutError as error:
        raise RequestError(
            f"The model {route.name!r} did not answer within {route.timeout_s:g} s; the request was cancelled.",
            code="timeout",
            status=504,
        ) from error
    except BackPressureError as error:
        raise overloaded() from error
    except RayActorError as error:
        raise _unavailable(route, "the replica that worked on this request died") from error
    except (DeploymentUnavailableError, ReplicaUnavailableError) as error:
        raise _unavailable(route, error.message) from error
    except DeploymentError as error:
        _log.error("the engine of %s failed", route.name, exc_info=error)
        raise _unavailable(route, "its engine failed") from error
