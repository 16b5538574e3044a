"""Models that answer in the test's own process, behind the interface of a gateway's (`ModelCalls`)."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from maas_ray.serve.api.middleware import App
from maas_ray.serve.api.model_calls import Answer, Usage, find_route
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.api.predict import Head, PredictBody, parse_rows
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.tasks import Task, TensorSpec

INPUTS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,)))
OUTPUTS = (TensorSpec("sum", "FP32", (-1,)), TensorSpec("word", "BYTES", (-1,)))


def route(name: str, kind: str, **changes: Any) -> Route:
    """The route to a model of text, or to one that sums."""
    fields = {
        "application": f"model-{name}",
        "task": "text-generation" if kind == "generate" else "sums",
        "version": f"{name}/3",
        "digest": "ab" * 32,
        "created": 1_700_000_000,
        "inputs": [vars(tensor) for tensor in INPUTS],
        "outputs": [vars(tensor) for tensor in OUTPUTS],
        "timeout_s": 30,
    }
    return Route.parse({"name": name, "kind": kind, **fields, **changes})


def task_route(name: str, task: Task) -> Route:
    """The route to a model of a task."""
    return route(name, task.kind, task=task.spec.type, **task.signature())


class InProcess:
    """`ModelCalls` to models that sum, and to those of tasks. What else they answer, tests add.

    Args:
        routes: to models without a task.
        tasks: by the public name of their model.

    Attributes:
        callers: who called, by the method that was called.
    """

    def __init__(self, *routes: Route, tasks: Mapping[str, Task] | None = None) -> None:
        self.tasks = tasks or {}
        self.table = {one.name: one for one in (*routes, *(task_route(*item) for item in self.tasks.items()))}
        self.callers: dict[str, Caller] = {}

    def routes(self, *, caller: Caller) -> list[Route]:
        self.callers["routes"] = caller
        return [self.table[name] for name in sorted(self.table)]

    def route(self, name: str, version: str = "", *, caller: Caller) -> Route:
        self.callers["route"] = caller
        return find_route(self.table, name, version)

    async def ready(self, route: Route, *, caller: Caller) -> bool:
        self.callers["ready"] = caller
        return True

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        self.callers["infer"] = caller
        request = parse_infer(body, INPUTS, OUTPUTS)
        outputs = {"sum": request.inputs["x"].sum(1), "word": request.inputs["word"]}
        return Answer(render_infer(request, outputs, OUTPUTS, route.name, route.number), Usage(rows=request.rows))

    async def predict(self, route: Route, body: PredictBody, *, caller: Caller) -> Answer[bytes]:
        self.callers["predict"] = caller
        task = self.tasks[route.name]
        request = parse_rows(body, task)
        outputs = self.outputs(route, await request.inputs(task))
        head = Head(model=route.name, version=route.number)
        rendered = request.render([task.to_answer(row) for row in outputs], head)
        return Answer(rendered, Usage(rows=len(request.rows)))

    def outputs(self, route: Route, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The network's outputs for each row of a task's inputs."""
        raise NotImplementedError


def send(app: App, method: str, path: str, *, root_path: str = "", **content: Any) -> httpx.Response:
    """The application's answer to one request."""

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

    return asyncio.run(once())
