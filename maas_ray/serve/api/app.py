"""The HTTP application: from paths to calls of models. A gateway serves it for all models, a replica for its own.

A request passes the `EdgeMiddleware`, then one of the endpoints below, which calls the model through `ModelCalls`.
"""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from maas_ray.errors import ModelNotFoundError, RequestError
from maas_ray.serve.api import openapi
from maas_ray.serve.api.incoming import BodyBudget, body_budget
from maas_ray.serve.api.middleware import CLIENT_ID_HEADER, App, EdgeMiddleware
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.model_urls import ModelUrls
from maas_ray.serve.api.open_inference import tensors as open_inference
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody
from maas_ray.serve.api.openai import embeddings, responses, transcriptions
from maas_ray.serve.api.openai import requests as openai
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.api.relay import Asked, Endpoint, Relay, read_body
from maas_ray.serve.api.validation import LARGE, parse_body, parse_json
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import TextRequest

_Read = TypeVar("_Read")
_PARSER = ThreadPoolExecutor(1, "bodies")
_OFTEN = ("/v2/models/{name}/infer", "/v1/completions", "/v1/chat/completions")
_COMPRESSION_LEVEL = 1  # the fastest
_COMPRESS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class _Api(Starlette):
    """Starlette's router alone: the `EdgeMiddleware` around it is the only layer that turns errors into answers."""

    def build_middleware_stack(self) -> App:
        return self.router


def create_app(
    models: ModelCalls,
    *,
    body_limit: int,
    text_body_limit: int | None = None,
    budget: BodyBudget | int | None = None,
    origins: Sequence[str] = (),
    relay: Relay | None = None,
) -> App:
    """The HTTP application over these models.

    Args:
        models: the models.
        body_limit: largest request body, bytes.
        text_body_limit: the same for completions and chats. None: `body_limit`.
        budget: of large request bodies, which other servers of this process may share; or its bytes. None: eight times
            `body_limit`.
        origins: origins of web pages whose scripts may send requests; `*` is every page.
        relay: passes on the requests that it can. None: this application answers all.
    """
    endpoints = _Endpoints(models)

    def relayed(endpoint: Endpoint, read: Callable[[Request, bytes], Awaitable[Asked | None]]) -> Endpoint:
        return relay.before(endpoint, read) if relay else endpoint

    predict, infer = relayed(endpoints.predict, _in_path), relayed(endpoints.infer, _in_path)
    v1, v2 = "/v1/models/{name}", "/v2/models/{name}"
    routes = [
        HttpRoute("/v1/chat/completions", relayed(endpoints.chat, _in_json), methods=["POST"]),
        HttpRoute("/v1/completions", relayed(endpoints.completions, _in_json), methods=["POST"]),
        HttpRoute("/v1/embeddings", relayed(endpoints.embeddings, _in_json), methods=["POST"]),
        HttpRoute("/v1/audio/transcriptions", relayed(endpoints.transcriptions, _in_form), methods=["POST"]),
        HttpRoute("/v1/models", endpoints.list_models),
        HttpRoute("/v1/models/{name}", endpoints.model),
        *(HttpRoute(f"{model}/predict", predict, methods=["POST"]) for model in (v1, f"{v1}/versions/{{version}}")),
        HttpRoute(f"{v1}:predict", predict, methods=["POST"]),
        *(
            HttpRoute(f"{model}{tail}", answer, methods=methods)
            for model in (v2, f"{v2}/versions/{{version}}")
            for tail, answer, methods in (
                ("/infer", infer, ["POST"]),
                ("/ready", endpoints.model_ready, ["GET"]),
                ("", endpoints.metadata, ["GET"]),
            )
        ),
        HttpRoute("/v2/health/live", endpoints.live),
        HttpRoute("/v2/health/ready", endpoints.ready),
        HttpRoute("/v2", endpoints.server),
        HttpRoute("/openapi.json", endpoints.openapi),
    ]
    routes.sort(key=lambda route: route.path not in _OFTEN)  # they are tried one after the other
    api = _Api(routes=routes)
    api.router.redirect_slashes = False
    shapes = {"/v2": open_inference.error_shape, "": responses.error_shape}
    text_limit = body_limit if text_body_limit is None else text_body_limit
    limits = {"/v1/completions": text_limit, "/v1/chat/": text_limit, "": body_limit}
    if not isinstance(budget, BodyBudget):
        budget = body_budget(budget, body_limit)
    edge = EdgeMiddleware(api, body_limits=limits, budget=budget, shapes=shapes)
    app = ModelUrls(edge)
    return _for_browsers(app, origins) if origins else app


def _for_browsers(app: App, origins: Sequence[str]) -> App:
    """The application for scripts of web pages too: it answers preflights, and says which pages may read answers."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", CLIENT_ID_HEADER, "retry-after", "x-should-retry", LENGTH_HEADER),
    )


class _Endpoints:
    """The endpoints."""

    def __init__(self, models: ModelCalls) -> None:
        self._models = models

    # --- OpenAI

    async def list_models(self, request: Request) -> Response:
        """The models that this API can call."""
        served = [route for route in self._routes(request) if openai_path(route)]
        cards = [responses.model_card(route.name, route.created, route.parent) for route in served]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        """The model, as OpenAI's API describes it, and its readiness, as version 1 of KServe's protocol does."""
        caller = _caller(request)
        route = self._route(request, request.path_params["name"])
        readiness = {"name": route.name, "ready": await self._models.ready(route, caller=caller)}
        card = responses.model_card(route.name, route.created, route.parent) if openai_path(route) else {}
        return JSONResponse(card | readiness)

    async def embeddings(self, request: Request) -> Response:
        body = await _parsed(request, partial(parse_body, embeddings.EmbeddingBody))
        route = self._route(request, body.model)
        if route.task != embeddings.TASK:
            raise _wrong_path(route)
        return JSONResponse(await embeddings.answer(self._models, route, body, caller=_caller(request)))

    async def completions(self, request: Request) -> Response:
        return await self._generate(openai.CompletionBody, request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._generate(openai.ChatBody, request, chat=True)

    async def _generate(
        self, kind: type[openai.CompletionBody] | type[openai.ChatBody], request: Request, *, chat: bool
    ) -> Response:
        caller = _caller(request)

        def read(document: Any) -> tuple[openai.CompletionBody | openai.ChatBody, TextRequest]:
            body = parse_body(kind, document)
            return body, body.request()

        body, text = await _parsed(request, read)
        route = self._route(request, body.model)
        if route.kind != "generate":
            raise _wrong_path(route)
        prompts = 1 + len(text.more_prompts)
        logprobs = text.sampling.logprobs
        renderer = responses.Renderer(route.name, route.digest, chat=chat, n=text.n, prompts=prompts, logprobs=logprobs)
        if not body.stream:
            return JSONResponse(renderer.complete(await self._models.complete(route, text, caller=caller)))
        deltas = self._models.stream(route, text, caller=caller)
        first = await anext(deltas)  # until then, an error can still have a status of its own
        events = renderer.stream(first, deltas, include_usage=body.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def transcriptions(self, request: Request) -> Response:
        form = transcriptions.parse_transcription(await read_body(request), request.headers.get("content-type", ""))
        route = self._route(request, form.model)
        if route.task != transcriptions.TASK:
            raise _wrong_path(route)
        try:
            answer = await self._models.predict(route, form.to_rows(), caller=_caller(request))
        except RequestError as error:
            raise transcriptions.file_error(error) from error
        body, media_type = transcriptions.Transcript.of_row(answer.body).render(form.response_format)
        return Response(body, media_type=media_type)

    # --- predict

    async def predict(self, request: Request) -> Response:
        route = self._version(request)
        body = PredictBody(await read_body(request), request.headers.get("content-type", ""))
        answer = await self._models.predict(route, body, caller=_caller(request))
        return Response(answer.body, media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document of everything that is served here."""
        return JSONResponse(openapi.document(self._routes(request)))

    # --- Open Inference Protocol

    async def server(self, request: Request) -> Response:
        return JSONResponse(open_inference.SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Readiness of all models together."""
        caller = _caller(request)
        ready = all([await self._models.ready(route, caller=caller) for route in self._routes(request)])
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._version(request).metadata())

    async def model_ready(self, request: Request) -> Response:
        route = self._version(request)
        ready = await self._models.ready(route, caller=_caller(request))
        return JSONResponse({"name": route.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        route = self._version(request)
        body = InferBody.of_http(await read_body(request), request.headers.get(LENGTH_HEADER))
        answer = (await self._models.infer(route, body, caller=_caller(request))).body
        data, headers = await _compressed(answer.data, request.headers.get("accept-encoding", ""))
        if answer.json_length is None:
            return Response(data, headers=headers, media_type="application/json")
        headers[LENGTH_HEADER] = str(answer.json_length)
        return Response(data, headers=headers, media_type="application/octet-stream")

    def _version(self, request: Request) -> Route:
        return self._route(request, request.path_params["name"], request.path_params.get("version", ""))

    def _route(self, request: Request, name: str, version: str = "") -> Route:
        """The route of a model that the request's URL has."""
        route = self._models.route(name, version, caller=_caller(request))
        if request.scope["model"] not in ("", route.name, route.parent):
            raise ModelNotFoundError(name, [own.name for own in self._routes(request)])
        return route

    def _routes(self, request: Request) -> list[Route]:
        """The routes of the models that the request's URL has: all, or that of `/models/NAME` and its adapters."""
        routes, owner = self._models.routes(caller=_caller(request)), request.scope["model"]
        own = [route for route in routes if owner in ("", route.name, route.parent)]
        if owner and not own:
            raise ModelNotFoundError(owner, [route.name for route in routes])
        return own


async def _in_path(request: Request, body: bytes) -> Asked:
    return Asked(request.path_params["name"], request.path_params.get("version", ""))


async def _in_json(request: Request, body: bytes) -> Asked | None:
    document = await _document(body)
    model = document.get("model") if isinstance(document, dict) else None
    return Asked(model) if isinstance(model, str) else None


async def _in_form(request: Request, body: bytes) -> Asked:
    return Asked(transcriptions.parse_transcription(body, request.headers.get("content-type", "")).model)


async def _document(body: bytes) -> Any:
    """The JSON document in a body. Large ones are parsed in a thread, one at a time."""
    if len(body) > LARGE:
        return await asyncio.get_running_loop().run_in_executor(_PARSER, parse_json, body)
    return parse_json(body)


async def _parsed(request: Request, read: Callable[[Any], _Read]) -> _Read:
    """The JSON document in the body, as `read` makes of it. The bytes are dropped.

    Large bodies are parsed in a thread, one at a time, so that other requests go on between the steps.
    """
    data = await read_body(request)
    if len(data) > LARGE:
        parsed = await asyncio.get_running_loop().run_in_executor(_PARSER, lambda: read(parse_json(data)))
    else:
        parsed = read(parse_json(data))
    request.scope["body"].release()
    return parsed


async def _compressed(data: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """An answer as its client wants it: compressed if it accepts nothing else. With the headers that say so.

    Most clients accept compressed answers beside others. Compressing these would cost more time than it saves.
    """
    compress = _COMPRESS.get(accepted.strip().lower())
    if compress is None:
        return data, {}
    return await asyncio.to_thread(compress, data, _COMPRESSION_LEVEL), {"content-encoding": accepted.strip().lower()}


def _caller(request: Request) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


def openai_path(route: Route) -> str:
    """The paths of OpenAI's API for a model. Empty: the API has none for its task."""
    if route.kind == "generate":
        return "/v1/completions or /v1/chat/completions"
    paths = {embeddings.TASK: "/v1/embeddings", transcriptions.TASK: "/v1/audio/transcriptions"}
    return paths.get(route.task, "")


def _wrong_path(route: Route) -> RequestError:
    """The model does not answer at this path; names the path at which it does."""
    path = openai_path(route) or f"/v1/models/{route.name}/predict"
    return RequestError(
        f"The model {route.name!r} does {route.task}; ask it at {path}.", param="model", code="model_not_supported"
    )
