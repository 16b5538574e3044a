"""Calls over Serve handles, with handles that are scripted: retries, cancellation, the caller, failures."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, RayServeException

from maas_ray.errors import DeploymentError, ModelNotFoundError, OverloadedError, RequestError
from maas_ray.serve.api.model_calls import Answer, Usage, find_route
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.openai import embeddings
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.calls import Models
from maas_ray.serve.routes import Route, from_config, pick, to_config
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
    def handle(application: str) -> None:
        assert application == "model-lm"
        raise RayServeException("not deployed")

    calls, _ = models()
    calls._applications = {}
    monkeypatch.setattr("maas_ray.serve.calls._handle", handle)
    with raises(RequestError, "model_unavailable", "'lm'") as caught:
        infer(calls)
    assert caught.value.status == 503


class Accepted:
    """Serve's response to a call that a replica works on."""

    def __init__(self, answer: Coroutine[Any, Any, Any]) -> None:
        self._answer = answer
        self._replica_result_future = SimpleNamespace(cancel=lambda: False)

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        self._answer.close()


class Applications:
    """Applications of embeddings, each version's vectors its own number; one that is gone never answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
        self.models, self.asked, self.deleted = models, list[str](), set[str]()
        self.after_each: Callable[[], Any] = lambda: None
        monkeypatch.setattr("maas_ray.serve.calls._handle", self.handle)

    def handle(self, application: str) -> Any:
        assert application not in self.deleted
        method = SimpleNamespace(remote=lambda body, _: Accepted(self.answer(application, body)))
        methods = {"complete": method, "infer": method, "predict": method, "options": lambda **_: method}
        return SimpleNamespace(**methods, running_replicas_populated=lambda: True)

    async def answer(self, application: str, body: PredictBody) -> Answer[bytes]:
        self.asked.append(application)
        if application in self.deleted:
            await asyncio.sleep(60)
        row = {"embedding": [float(application[-1])], "tokens": 1}
        predictions = [row for _ in json.loads(body.data)["instances"]]
        if (change := self.after_each()) is not None:
            await change
        return Answer(json.dumps({"predictions": predictions}).encode(), Usage(len(predictions)))

    async def route_to(self, *applications: str, task: str = embeddings.TASK) -> None:
        served = [route("emb", "predict", application=name, task=task) for name in applications]
        self.deleted = {"model-1", "model-2", "model-3", "model-4", "model-5"} - set(applications)
        await self.models.update(tuple(served))


def embed(served: Applications, inputs: int) -> list[float]:
    """The numbers of the versions whose vectors the answer has."""

    async def ask() -> dict[str, Any]:
        await served.route_to("model-1")
        body = embeddings.EmbeddingBody(model="emb", input=["text"] * inputs)
        return await embeddings.answer(served.models, served.models.route("emb", caller=CALLER), body, caller=CALLER)

    answer = asyncio.run(asyncio.wait_for(ask(), 10))
    assert [row["index"] for row in answer["data"]] == list(range(inputs))
    return sorted({row["embedding"][0] for row in answer["data"]})


def test_embeddings_in_parts_come_from_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Applications(monkeypatch, Models())
    served.after_each = lambda: served.route_to("model-2") if len(served.asked) == 1 else None
    assert embed(served, 600) == [2.0]
    assert served.asked == ["model-1"] + ["model-2"] * 3


class Moving(Response):
    """Fails as its replica dies, after the route has moved to another application."""

    calls: Models

    def __init__(self, version: str, binding: str) -> None:
        super().__init__(died())
        self.version, self.binding = version, binding

    async def _next(self) -> Any:
        handle = self.calls._applications["model-lm"]
        self.calls._routes = {"lm": route("lm", "generate", version=self.version, application=self.binding)}
        self.calls._applications = {self.binding: handle}
        return await super()._next()


@pytest.mark.parametrize("asked", ["", "3"])
@pytest.mark.parametrize("version", ["lm/3", "lm/4"])
def test_no_other_version_answers_than_was_asked_for(asked: str, version: str) -> None:
    moving = Moving(version, "model-lm-other")
    moving.calls, method = models(moving, Response(ANSWER))

    def ask() -> Answer[InferBody]:
        found = moving.calls.route("lm", asked, caller=CALLER)
        return asyncio.run(moving.calls.infer(found, BODY, caller=CALLER))

    if asked and version == "lm/4":
        with raises(ModelNotFoundError, "model_not_found", "lm version 3", "lm version 4"):
            ask()
        assert len(method.calls) == 1
    else:
        assert ask() == ANSWER
        assert len(method.calls) == 2


def test_a_request_for_a_version_is_never_sent_to_another_target() -> None:
    targets = [
        {"application": "model-lm", "version": "lm/3", "weight": 0.01},
        {"application": "model-lm-next", "version": "lm/4", "weight": 0.99},
    ]
    split = Route.parse(route("lm", "generate").document() | {"targets": targets})
    for _ in range(20):
        assert pick(find_route({"lm": split}, "lm", "3"), CALLER).version == "lm/3"
    assert from_config(to_config((split.pinned(),)))[0].is_pinned is False


def test_embeddings_whose_route_moves_all_the_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Applications(monkeypatch, Models())
    served.after_each = lambda: served.route_to(f"model-{len(served.asked) + 1}")
    with raises(RequestError, "model_unavailable", "emb"):
        embed(served, 600)
    served = Applications(monkeypatch, Models())
    served.after_each = lambda: served.route_to("model-2")
    assert embed(served, 256) == [1.0]  # one part needs no other


@pytest.mark.parametrize("after", [1, 3])
def test_embeddings_whose_model_becomes_one_of_another_task_are_refused(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    served = Applications(monkeypatch, Models())
    moved = "text-classification"
    served.after_each = lambda: served.route_to("model-2", task=moved) if len(served.asked) == after else None
    with raises(RequestError, "model_unavailable", "emb") as caught:
        embed(served, 600)
    assert (caught.value.status, served.asked) == (503, ["model-1"] * after)


def test_a_request_is_never_answered_by_a_model_of_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Applications(monkeypatch, Models())

    async def ask() -> None:
        await served.route_to("model-1")
        old = served.models.route("emb", caller=CALLER)
        await served.route_to("model-2", task="text-classification")
        await served.models.predict(old, PredictBody(b'{"instances": [1]}', "application/json"), caller=CALLER)

    with raises(RequestError, "model_unavailable", "emb"):
        asyncio.run(ask())
    assert served.asked == []


def test_a_request_with_an_old_route_takes_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Applications(monkeypatch, Models())

    async def ask(*present: str) -> Answer[bytes]:
        await served.route_to("model-1")
        old = served.models.route("emb", caller=CALLER)
        await served.route_to(*present)
        return await served.models.predict(old, PredictBody(b'{"instances": [1]}', "application/json"), caller=CALLER)

    asyncio.run(ask("model-2"))
    assert served.asked == ["model-2"]
    with raises(ModelNotFoundError, "model_not_found", "emb"):
        asyncio.run(ask())


def test_a_request_does_not_go_to_an_application_that_left_while_it_was_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Applications(monkeypatch, Models())

    async def ask() -> None:
        await served.route_to("model-1")
        del served.models._applications["model-1"]  # it did not run when the table came
        connect = served.models._connect

        async def slowly(application: str) -> None:
            await connect(application)
            if application == "model-1":
                await served.route_to("model-2")

        monkeypatch.setattr(served.models, "_connect", slowly)
        old = served.models.route("emb", caller=CALLER)
        await served.models.predict(old, PredictBody(b'{"instances": [1]}', "application/json"), caller=CALLER)

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert served.asked == ["model-2"]
