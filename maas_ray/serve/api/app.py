"""The HTTP application: from paths to calls of models. A gateway serves it for all models, a replica for its own.

A request passes the `EdgeMiddleware`, then one of the endpoints below, which calls the model through `ModelCalls`.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from maas_ray.errors import RequestError
from maas_ray.serve.api import openapi
from maas_ray.serve.api.middleware import App, EdgeMiddleware
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.open_inference import tensors as open_inference
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody
from maas_ray.serve.api.openai import embeddings, responses, transcriptions
from maas_ray.serve.api.openai import requests as openai
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.api.validation import parse_body, parse_json
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route


class _Api(Starlette):
    """Starlette's router alone: the `EdgeMiddleware` around it is the only layer that turns errors into answers."""

    def build_middleware_stack(self) -> App:
        return self.router


def create_app(models: ModelCalls, *, body_limit: int) -> App:
    """The HTTP application over these models."""
    endpoints = _Endpoints(models)
    v1, v2 = "/v1/models/{name}", "/v2/models/{name}"
    routes = [
        HttpRoute("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        HttpRoute("/v1/completions", endpoints.completions, methods=["POST"]),
        HttpRoute("/v1/embeddings", endpoints.embeddings, methods=["POST"]),
        HttpRoute("/v1/audio/transcriptions", endpoints.transcriptions, methods=["POST"]),
        HttpRoute("/v1/models", endpoints.list_models),
        HttpRoute("/v1/models/{name}", endpoints.model),
        *(
            HttpRoute(f"{model}/predict", endpoints.predict, methods=["POST"])
            for model in (v1, f"{v1}/versions/{{version}}")
        ),
        *(
            HttpRoute(f"{model}{tail}", answer, methods=methods)
            for model in (v2, f"{v2}/versions/{{version}}")
            for tail, answer, methods in (
                ("/infer", endpoints.infer, ["POST"]),
                ("/ready", endpoints.model_ready, ["GET"]),
                ("", endpoints.metadata, ["GET"]),
            )
        ),
        HttpRoute("/v2/health/live", endpoints.live),
        HttpRoute("/v2/health/ready", endpoints.ready),
        HttpRoute("/v2", endpoints.server),
        HttpRoute("/openapi.json", endpoints.openapi),
    ]
    api = _Api(routes=routes)
    api.router.redirect_slashes = False
    shapes = {"/v2": open_inference.error_shape, "": responses.error_shape}
    return EdgeMiddleware(api, body_limit=body_limit, shapes=shapes)


class _Endpoints:
    """The endpoints."""

    def __init__(self, models: ModelCalls) -> None:
        self._models = models

    # --- OpenAI

    async def list_models(self, request: Request) -> Response:
        """The models that this API can call."""
        served = [route for route in self._models.routes(caller=_caller(request)) if openai_path(route)]
        cards = [responses.model_card(route.name, route.created, route.parent) for route in served]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        route = self._models.route(request.path_params["name"], caller=_caller(request))
        if not openai_path(route):
            raise _wrong_path(route)
        return JSONResponse(responses.model_card(route.name, route.created, route.parent))

    async def embeddings(self, request: Request) -> Response:
        body = parse_body(embeddings.EmbeddingBody, parse_json(await request.body()))
        route = self._models.route(body.model, caller=_caller(request))
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
        body = parse_body(kind, parse_json(await request.body()))
        route = self._models.route(body.model, caller=caller)
        if route.kind != "generate":
            raise _wrong_path(route)
        text = body.request()
        renderer = responses.Renderer(route.name, route.digest, chat=chat, n=text.n, logprobs=text.sampling.logprobs)
        if not body.stream:
            return JSONResponse(renderer.complete(await self._models.complete(route, text, caller=caller)))
        deltas = self._models.stream(route, text, caller=caller)
        first = await anext(deltas)  # until then, an error can still have a status of its own
        events = renderer.stream(first, deltas, include_usage=body.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def transcriptions(self, request: Request) -> Response:
        form = transcriptions.parse_transcription(await request.body(), request.headers.get("content-type", ""))
        route = self._models.route(form.model, caller=_caller(request))
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
        body = PredictBody(await request.body(), request.headers.get("content-type", ""))
        answer = await self._models.predict(route, body, caller=_caller(request))
        return Response(answer.body, media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document of everything that is served here."""
        return JSONResponse(openapi.document(self._models.routes(caller=_caller(request))))

    # --- Open Inference Protocol

    async def server(self, request: Request) -> Response:
        return JSONResponse(open_inference.SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Readiness of all models together."""
        caller = _caller(request)
        ready = all([await self._models.ready(route, caller=caller) for route in self._models.routes(caller=caller)])
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._version(request).metadata())

    async def model_ready(self, request: Request) -> Response:
        route = self._version(request)
        ready = await self._models.ready(route, caller=_caller(request))
        return JSONResponse({"name": route.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        route = self._version(request)
        body = InferBody.of_http(await request.body(), request.headers.get(LENGTH_HEADER))
        answer = (await self._models.infer(route, body, caller=_caller(request))).body
        if answer.json_length is None:
            return Response(answer.data, media_type="application/json")
        headers = {LENGTH_HEADER: str(answer.json_length)}
        return Response(answer.data, headers=headers, media_type="application/octet-stream")

    def _version(self, request: Request) -> Route:
        name, version = request.path_params["name"], request.path_params.get("version", "")
        return self._models.route(name, version, caller=_caller(request))


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
