"""The interface between APIs and models: every API calls models through `ModelCalls`, and in no other way.

`maas_ray.serve.calls` implements it for a gateway, over Serve handles; `maas_ray.serve.replicas.direct` for a replica
that answers for itself. Whatever depends on the caller, the model or the usage can be wrapped around it.
"""

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from maas_ray.errors import DeploymentError, ModelNotFoundError, RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import Adapter, Delta, TextRequest

_log = logging.getLogger("ray.serve")
_Body = TypeVar("_Body")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Usage:
    """The work that a request caused.

    Args:
        rows: rows answered.
        prompt_tokens, completion_tokens: tokens read and generated, of a model that generates; else 0.
    """

    rows: int
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Answer(Generic[_Body]):
    """The body of an answer, and the usage to account for it."""

    body: _Body
    usage: Usage


class ModelCalls(Protocol):
    """The models that an API can call: all of a gateway's, or the one of a replica."""

    def routes(self, *, caller: Caller) -> list[Route]:
        """All routes, by name."""

    def route(self, name: str, version: str = "", *, caller: Caller) -> Route:
        """The route of a public model name.

        Args:
            name: the public model name.
            version: the number that the served version must have, also when it answers. Empty: any.
            caller: who calls.

        Raises:
            ModelNotFoundError: no such model, or no such version of it, is served.
        """

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        """The complete answers, `n` for each prompt."""

    def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        """The answers, piece by piece. Closing it cancels the generation."""

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        """The answer to an Open Inference request."""

    async def predict(self, route: Route, body: PredictBody, *, caller: Caller) -> Answer[bytes]:
        """The answer to rows in the task's own terms: a JSON document."""

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        """True if the model can answer now."""


def find_route(routes: Mapping[str, Route], name: str, version: str) -> Route:
    """The route of a public model name; see `ModelCalls.route`."""
    try:
        route = routes[name]
    except KeyError:
        raise ModelNotFoundError(name, sorted(routes)) from None
    if not version:
        return route
    if version != route.number:
        raise ModelNotFoundError(f"{name} version {version}", [f"{name} version {route.number}"])
    return route.pinned()


def with_adapter(request: TextRequest, route: Route) -> TextRequest:
    """The request, for the adapter of its route if that has one."""
    return replace(request, adapter=Adapter(route.adapter.uri, route.adapter.digest)) if route.adapter else request


def refuse_adapter(route: Route) -> None:
    """Refuse a body that is passed on unread: it cannot say which adapter it is for, so the base would answer."""
    if route.adapter:
        raise RequestError(
            f"{route.name!r} is an adapter; ask it at /v1/completions or /v1/chat/completions.",
            param="model",
            code="model_not_supported",
        )


def checked(result: _Result | RequestError) -> _Result:
    """A replica's result. Replicas return errors of the client, because Serve logs a traceback for any they raise."""
    if isinstance(result, RequestError):
        raise result
    return result


@contextmanager
def translated_failures(route: Route) -> Iterator[None]:
    """Failures of a call, raised as the error that the client gets."""
    try:
        yield
    except TimeoutError as error:
        raise refusals.timed_out(route.name, route.timeout_s) from error
    except DeploymentError as error:
        _log.error("the engine of %s failed", route.name, exc_info=error)
        raise refusals.unavailable(route.name, "its engine failed") from error
