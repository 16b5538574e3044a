"""Calls from a gateway to the model applications over Serve handles: routed, retried, and with failures told apart.

A failure becomes the `RequestError` that is true of it: the client's fault (as the model says), no such model,
overloaded, too slow, or unavailable. Knows nothing of HTTP or of the shapes of any API.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from maas_ray.ray_private.serve import HttpReplicas, cancel_if_queued
from maas_ray.serve.api import refusals
from maas_ray.serve.api.model_calls import (
    Answer,
    checked,
    find_route,
    refuse_adapter,
    translated_failures,
    with_adapter,
)
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.api.relay import Asked
from maas_ray.serve.caller import Caller
from maas_ray.serve.readiness import Readiness, in_thread
from maas_ray.serve.routes import Route, Table, Target, pick
from maas_ray.serve.text.types import Delta, TextRequest
from maas_ray.serve.upstreams import Replica, Replicas

_log = logging.getLogger("ray.serve")
_REPLICAS_KNOWN_S, _POLL_S = 1.0, 0.02  # an application may have no replicas
_MAX_REPLICA_DEATH_RETRIES = 1  # after the death of a replica: the request itself may be what kills replicas


@dataclass(frozen=True)
class _Handles:
    """One handle for each method, because binding a handle to a method costs as much as calling it."""

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
    """The routing table, and calls along its routes: `ModelCalls` over Serve handles."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._applications: dict[str, Any] = {}  # one handle for each, which has its own router and connections
        self._handles: dict[tuple[str, str], _Handles] = {}
        self._replicas: dict[str, Replicas] = {}
        self._waiting: dict[str, set[Any]] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._readiness = Readiness()

    async def update(self, table: Table) -> None:
        """Replace the routing table.

        Requests that a replica has accepted stay there. Those that still wait for a replica of an application that is
        gone from the table are retried along the new route.
        """
        routes = {expanded.name: expanded for route in table for expanded in route.expanded()}
        applications = {name for route in table for name in route.applications}
        await asyncio.gather(*(self._connect(application) for application in applications - set(self._applications)))
        self._routes = routes
        self._applications = {name: handle for name, handle in self._applications.items() if name in applications}
        self._replicas = {name: replicas for name, replicas in self._replicas.items() if name in applications}
        bound = {binding for route in table for binding in _bindings(route)}
        self._handles = {key: handles for key, handles in self._handles.items() if key in bound}
        for application in self._waiting.keys() - applications:
            waiting = self._waiting.pop(application)
            for response in list(waiting):
                # Serve would let it wait for a deleted application for ever. If it cannot be cancelled, a replica has
                # accepted it.
                if cancel_if_queued(response):
                    waiting.discard(response)

    async def close(self) -> None:
        """Stop the routers of all handles, in a process that goes on without them."""
        for handle in self._applications.values():
            await handle.shutdown_async()

    def routes(self, *, caller: Caller) -> list[Route]:
        return sorted(self._routes.values(), key=lambda route: route.name)

    def route(self, name: str, version: str = "", *, caller: Caller) -> Route:
        return find_route(self._routes, name, version)

    def asked(self, asked: Asked, caller: Caller) -> Route:
        """The route of what a request asks; see `api.relay.Relay`."""
        return self.route(asked.name, asked.version, caller=caller)

    def replica(self, route: Route, caller: Caller, tried: set[str]) -> Replica | None:
        """A replica that answers the route's requests over HTTP; see `api.relay.Relay`."""
        target = pick(route, caller)
        handle = self._applications.get(target.application)
        if target.shared or handle is None:
            return None
        replicas = self._replicas.get(target.application)
        if replicas is None:
            replicas = self._replicas[target.application] = Replicas(HttpReplicas(handle).now)
        return replicas.choose(tried)

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        answers: list[Delta] = await self._call(route, "complete", request, caller)
        return answers

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        refuse_adapter(route)
        answer: Answer[InferBody] = await self._call(route, "infer", body, caller)
        return answer

    async def predict(self, route: Route, body: PredictBody, *, caller: Caller) -> Answer[bytes]:
        refuse_adapter(route)
        answer: Answer[bytes] = await self._call(route, "predict", body, caller)
        return answer

    async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        deadline = asyncio.get_running_loop().time() + route.timeout_s
        response: Any = None
        try:
            while True:
                with _translated(route):
                    try:
                        async with asyncio.timeout_at(deadline):
                            if response is None:
                                delta, response = await self._send_with_retry(route, "generate", request, caller)
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

    async def _call(self, route: Route, method: str, argument: Any, caller: Caller) -> Any:
        with _translated(route):
            async with asyncio.timeout(route.timeout_s):
                result, _ = await self._send_with_retry(route, method, argument, caller)
        return checked(result)

    async def _send_with_retry(self, route: Route, method: str, argument: Any, caller: Caller) -> tuple[Any, Any]:
        """Send a request to a replica, and retry it if the replica dies or the route moves before there is an answer.

        A request is idempotent, because answering changes nothing in a model. So it is retried on another replica when
        its own died (`_MAX_REPLICA_DEATH_RETRIES` times), and along the new route when its application went before any
        replica accepted the request. A retry does not wait: Serve's router already knows that the replica is gone.

        Returns:
            The result, or the first piece of a stream; and Serve's response, which yields the further pieces.
        """
        from ray.exceptions import RayActorError

        retries = 0
        while True:
            route = self._current(route, caller)
            if isinstance(argument, TextRequest):
                argument = with_adapter(argument, route)
            target = pick(route, caller)
            handles = await self._bound(target)
            if self._current(route, caller) is not route:
                continue  # it moved meanwhile
            if handles is None:
                raise refusals.unavailable(route.name, "its application is not running")
            response = getattr(handles, method).remote(argument, caller)
            waiting = self._waiting.setdefault(target.application, set())
            waiting.add(response)
            try:
                return await (anext(response) if method == "generate" else response), response
            except RayActorError:
                if retries == _MAX_REPLICA_DEATH_RETRIES:
                    raise
                retries += 1
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if response in waiting or (task and task.cancelling()):
                    response.cancel()
                    raise
            finally:
                waiting.discard(response)

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        """True if the application can answer, according to Serve's controller."""
        return await self._readiness.ready(route.target.application)

    def _current(self, route: Route, caller: Caller) -> Route:
        """The route itself; or its model's present one, if it has moved since the request came.

        Raises:
            ModelNotFoundError: the model is gone, or the version that the request asked for.
            RequestError: it now is a model of another task, whose answers have other fields.
        """
        present = self.route(route.name, caller=caller)
        if present is route or _bindings(route) <= _bindings(present):
            return route
        if route.is_pinned:
            return self.route(route.name, route.number, caller=caller)
        if present.task != route.task:
            raise refusals.of_another_task(route.name, present.version)
        return present

    async def _bound(self, target: Target) -> _Handles | None:
        """The handles of a target. None: its application is not running."""
        key = (target.application, target.shared)
        if key not in self._handles:
            handle = self._applications.get(target.application) or await self._reconnect(target.application)
            if handle is None:
                return None
            self._handles[key] = _Handles.of(handle, target.shared)
        return self._handles[key]

    async def _reconnect(self, application: str) -> Any:
        """The handle of an application of the table that was not running when the table came. None: it still is not."""
        connecting = self._connecting.get(application)
        if connecting is None:
            connecting = self._connecting[application] = asyncio.create_task(self._connect(application))
            connecting.add_done_callback(lambda _: self._connecting.pop(application))
        await asyncio.shield(connecting)
        return self._applications.get(application)

    async def _connect(self, application: str) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            handle = await in_thread(partial(_handle, application))
            # Until its router has heard of the replicas, requests would fill its queue, and then be refused.
            deadline = time.monotonic() + _REPLICAS_KNOWN_S
            while not handle.running_replicas_populated() and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
            self._applications[application] = handle
        except (RayServeException, RayError) as error:
            _log.warning("no handle for %s: %s", application, error)


def _bindings(route: Route) -> set[tuple[str, str]]:
    """The keys of the handles that the route needs."""
    return {(target.application, target.shared) for target in route.targets}


def _handle(application: str) -> Any:
    from ray import serve

    return serve.get_app_handle(application).options()  # which starts its router


@contextmanager
def _translated(route: Route) -> Iterator[None]:
    """Failures of a call, Ray's included, raised as the error that the client gets."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    try:
        with translated_failures(route):
            yield
    except BackPressureError as error:
        raise refusals.overloaded() from error
    except RayActorError as error:
        raise refusals.unavailable(route.name, "the replica that worked on this request died") from error
    except (DeploymentUnavailableError, ReplicaUnavailableError) as error:
        raise refusals.unavailable(route.name, error.message) from error
