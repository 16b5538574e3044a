"""Calls over Serve handles, with handles that are scripted: retries, cancellation, the caller, failures."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from maas_ray.errors import DeploymentError, OverloadedError, RequestError
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.calls import Models
from maas_ray.serve.text.types import Delta, TextRequest
from tests.support.errors import raises
from tests.support.models import route

CALLER = Caller(id="anna", kind="test")
BODY = InferBody(b"{}")
ANSWER = Answer(BODY, Usage(rows=1))
DELTAS = [Delta("a", None, 1, 1), Delta("b", "stop", 1, 2)]


class Response:
    """Serve's response to a call: a result, or the pieces of a stream. An exception among them is raised."""

    def __init__(self, *items: Any, delay: float = 0) -> None:
        self._items, self._delay = list(items), delay
        self.cancelled = 0
        self._replica_result_future = SimpleNamespace(cancel=lambda: False)

    def cancel(self) -> None:
        self.cancelled += 1

    def __await__(self) -> Any:
        return self._next().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        return await self._next()

    async def _next(self) -> Any:
        await asyncio.sleep(self._delay)
        item = self._items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item


class Method:
    """A handle's method that answers calls with these responses, in order."""

    def __init__(self, responses: Sequence[Response]) -> None:
        self.responses = list(responses)
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> Response:
        self.calls.append(arguments)
        return self.responses[len(self.calls) - 1]


def models(*responses: Response, **changes: Any) -> tuple[Models, Method]:
    """Models with one application, all of whose methods answer with these responses."""
    models, method = Models(), Method(responses)
    models._routes = {"lm": route("lm", "generate", **changes)}
    handle = SimpleNamespace(complete=method, infer=method, predict=method, options=lambda **_: method)
    models._applications = {"model-lm": handle}
    return models, method


def infer(models: Models) -> Answer[InferBody]:
    return asyncio.run(models.infer(models.route("lm", caller=CALLER), BODY, caller=CALLER))


def died() -> ActorDiedError:
    return ActorDiedError()


def test_a_request_is_retried_once_when_its_replica_dies() -> None:
    calls, method = models(Response(died()), Response(ANSWER))
    assert infer(calls) == ANSWER
    assert method.calls == [(BODY, CALLER)] * 2


def test_a_request_whose_retry_dies_too_is_not_retried_again() -> None:
    calls, method = models(Response(died()), Response(died()), Response(ANSWER))
    with raises(RequestError, "model_unavailable", "'lm'") as caught:
        infer(calls)
    assert caught.value.status == 503
    assert len(method.calls) == 2


def test_a_stream_is_retried_before_its_first_piece_and_not_after() -> None:
    async def stream(calls: Models) -> list[Delta]:
        route = calls.route("lm", caller=CALLER)
        return [delta async for delta in calls.stream(route, TextRequest("x", 2), caller=CALLER)]

    calls, method = models(Response(died()), Response(*DELTAS))
    assert asyncio.run(stream(calls)) == DELTAS
    assert [arguments[1] for arguments in method.calls] == [CALLER, CALLER]
    calls, method = models(Response(DELTAS[0], died()), Response(*DELTAS))
    with raises(RequestError, "model_unavailable", "'lm'"):
        asyncio.run(stream(calls))
    assert len(method.calls) == 1


def test_closing_a_stream_cancels_the_request_on_its_replica() -> None:
    response = Response(*DELTAS)
    calls, _ = models(response)

    async def leave() -> None:
        stream = calls.stream(calls.route("lm", caller=CALLER), TextRequest("x", 2), caller=CALLER)
        async with aclosing(stream):
            await anext(stream)
        assert response.cancelled == 1

    asyncio.run(leave())


@pytest.mark.parametrize("pieces", [0, 1], ids=["before the first piece", "after the first piece"])
def test_cancelling_a_stream_cancels_the_request_on_its_replica(pieces: int) -> None:
    response = Response(*DELTAS, delay=0.05)
    calls, _ = models(response)

    async def leave() -> None:
        stream = calls.stream(calls.route("lm", caller=CALLER), TextRequest("x", 2), caller=CALLER)
        for _ in range(pieces):
            await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert response.cancelled

    asyncio.run(leave())


def test_a_stream_that_is_read_to_its_end_cancels_nothing() -> None:
    response = Response(*DELTAS)
    calls, _ = models(response)

    async def read() -> None:
        stream = calls.stream(calls.route("lm", caller=CALLER), TextRequest("x", 2), caller=CALLER)
        assert [delta async for delta in stream] == DELTAS

    asyncio.run(read())
    assert response.cancelled == 0


def test_a_stream_that_takes_too_long_is_cancelled_with_a_timeout() -> None:
    response = Response(*DELTAS, delay=0.06)
    calls, _ = models(response, timeout_s=0.1)

    async def read() -> None:
        route = calls.route("lm", caller=CALLER)
        with raises(RequestError, "timeout", "'lm'", "0.1 s"):
            [_ async for _ in calls.stream(route, TextRequest("x", 2), caller=CALLER)]

    asyncio.run(read())
    assert response.cancelled == 1


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 429, "rate_limit_exceeded"),
        (DeploymentError("the engine has stopped"), 503, "model_unavailable"),
        (TimeoutError(), 504, "timeout"),
    ],
    ids=["overload", "engine", "timeout"],
)
def test_each_failure_becomes_the_client_s_own_error(failure: Exception, status: int, code: str) -> None:
    calls, _ = models(Response(failure))
    with raises(RequestError, code) as caught:
        infer(calls)
    assert caught.value.status == status
    assert isinstance(caught.value, OverloadedError) == (status == 429)


def test_an_error_that_a_replica_returned_is_raised() -> None:
    calls, _ = models(Response(RequestError("x is wrong", param="x", code="invalid_type")))
    with raises(RequestError, "invalid_type", "x") as caught:
        infer(calls)
    assert caught.value.param == "x"


def test_an_application_that_is_not_running_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(application: str) -> None:
        assert application == "model-lm"

    calls, _ = models()
    calls._applications = {}
    monkeypatch.setattr(calls, "_connect", connect)
    with raises(RequestError, "model_unavailable", "'lm'") as caught:
        infer(calls)
    assert caught.value.status == 503
