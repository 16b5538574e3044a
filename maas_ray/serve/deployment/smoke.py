"""The smoke request: one request to a new application, before any route leads to it.

It passes through the gateway's own HTTP application, which runs here with that one route. The request meets the same
checks as a client's, and the answer has the form that clients will see.
"""

import asyncio
import json
import logging
import math
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from maas_ray.errors import DeploymentError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.middleware import App
from maas_ray.serve.calls import Models
from maas_ray.serve.routes import Route
from maas_ray.serve.spec import GatewayArgs

_SHOWN = 600  # characters of an answer


def check(route: Route, body: dict[str, Any] | None = None, limits: GatewayArgs | None = None) -> None:
    """Send a smoke request and check the answer.

    Args:
        route: to the application.
        body: the request, as a client sends it, without `model`. Its answer must have status 200. None: a default
            request for the task. A model may refuse the default's row of zeros, so status 4xx is accepted too.
        limits: those of the gateway. None: the defaults.

    Raises:
        DeploymentError: the answer has another status.
    """
    path, default = _request(route, body)
    asked = json.dumps(default if body is None else body | ({"model": route.name} if _generates(route) else {}))
    with _raised() as raised:
        status, answer = _run(_ask(route, path, asked.encode(), limits or GatewayArgs()))
    refusal_is_fine = body is None and not _generates(route)
    if status != 200 and not (refusal_is_fine and 400 <= status < 500):
        why = f" It raised: {_short(raised.last)}" if raised.last else ""
        raise DeploymentError(
            f"{route.version} gets no traffic, because its smoke request was answered with status {status}. "
            f"Request: POST {path} {_short(asked)} Answer: {_short(answer.strip())}{why}",
            code="smoke_request_failed",
        )


class _Raised(logging.Filter):
    """Keeps the error that the middleware logs and hides from clients, because a deployer needs to see it."""

    last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            cause = getattr(error, "cause", None) or error  # Ray wraps what a replica raised
            self.last = f"{type(cause).__name__}: {cause}"
        return False


@contextmanager
def _raised() -> Iterator[_Raised]:
    raised, log = _Raised(), logging.getLogger("ray.serve")
    log.addFilter(raised)
    try:
        yield raised
    finally:
        log.removeFilter(raised)


def _run(asking: Coroutine[Any, Any, tuple[int, str]]) -> tuple[int, str]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asking)
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has an event loop already
        return thread.submit(asyncio.run, asking).result()


def _generates(route: Route) -> bool:
    return route.kind == "generate"


def _request(route: Route, body: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The path of the smoke request, and its default body."""
    if _generates(route):
        path = "/v1/chat/completions" if body and "messages" in body else "/v1/completions"
        return path, {"model": route.name, "prompt": "Hello", "max_tokens": 4}
    inputs = []
    for tensor in route.inputs:
        shape = [max(size, 1) for size in tensor.shape]
        value: Any = {"BYTES": "", "BOOL": False}.get(tensor.datatype, 0)
        data = [value] * math.prod(shape)
        inputs.append({"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": data})
    return f"/v2/models/{route.name}/infer", {"inputs": inputs}


async def _ask(route: Route, path: str, body: bytes, limits: GatewayArgs) -> tuple[int, str]:
    models = Models()
    await models.update((route,))
    try:
        limit, text_limit = int(limits.body_limit_mb * 1e6), int(limits.text_body_limit_mb * 1e6)
        return await _post(create_app(models, body_limit=limit, text_body_limit=text_limit), path, body)
    finally:
        await models.close()


async def _post(app: App, path: str, body: bytes) -> tuple[int, str]:
    """Status and text of an ASGI application's answer to a request."""
    status, parts, asked, answered = 0, bytearray(), False, asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await answered.wait()  # the client stays connected until then
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.extend(message.get("body", b""))
            if not message.get("more_body", False):
                answered.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status, parts.decode(errors="replace")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
