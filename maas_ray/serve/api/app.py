"""The HTTP application: paths to models. See `gateway` and `single` for Serve's part.

A request goes from the `Guard` to one of the APIs, and from there through `Models` to a model application.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from maas_ray.errors import RequestError
from maas_ray.serve.api import openapi
from maas_ray.serve.api.middleware import App, Guard, parse_json
from maas_ray.serve.api.open_inference import tensors as open_inference
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferBody
from maas_ray.serve.api.openai import embeddings, transcriptions
from maas_ray.serve.api.openai import requests as openai
from maas_ray.serve.api.openai import responses as openai_answers
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.calls import ModelCalls
from maas_ray.serve.routes import Route


class _Api(Starlette):
    """Starlette's router alone: the guard around it is the one layer that makes errors into answers."""

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
    shapes = {"/v2": open_inference.error_shape, "": openai_answers.error_shape}
    return Guard(api, body_limit=body_limit, shapes=shapes)


class _Endpoints:
    """What each path does."""

    def __init__(self, models: ModelCalls) -> None:
        self._models = models

    # --- OpenAI

    async def list_models(self, request: Request) -> Response:
        """The models that this API can be asked."""
        served = [route for route in self._models.routes() if openai_path(route)]
        cards = [openai_answers.model_card(route.name, route.created, route.parent) for route in served]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        route = self._models.route(request.path_params["name"])
        if not openai_path(route):
            raise _elsewhere(route)
        return JSONResponse(openai_answers.model_card(route.name, route.created, route.parent))

    async def embeddings(self, request: Request) -> Response:
        asked = openai.parse_body(embeddings.EmbeddingBody, parse_json(await request.body()))
        route = self._models.route(asked.model)
        if route.task != embeddings.TASK:
            raise _elsewhere(route)
        return JSONResponse(await embeddings.answer(self._models, route, asked))

    async def completions(self, request: Request) -> Response:
        return await self._generate(openai.CompletionBody, await request.body(), chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._generate(openai.ChatBody, await request.body(), chat=True)

    async def _generate(
        self, kind: type[openai.CompletionBody] | type[openai.ChatBody], body: bytes, *, chat: bool
    ) -> Response:
        asked = openai.parse_body(kind, parse_json(body))
        route = self._generating(asked.model)
        request = asked.request()
        answer = openai_answers.Answer(route.name, route.digest, chat=chat, n=request.n, logprobs=request.logprobs)
        if not asked.stream:
            return JSONResponse(answer.whole(await self._models.complete(route, request)))
        deltas = self._models.stream(route, request)
        first = await anext(deltas)  # an error before it still has a status of its own
        events = answer.stream(first, deltas, include_usage=asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    def _generating(self, name: str) -> Route:
        route = self._models.route(name)
        if route.kind != "generate":
            raise _elsewhere(route)
        return route

    async def transcriptions(self, request: Request) -> Response:
        asked = transcriptions.parse_transcription(await request.body(), request.headers.get("content-type", ""))
        route = self._models.route(asked.model)
        if route.task != transcriptions.TASK:
            raise _elsewhere(route)
        try:
            answer = await self._models.predict(route, asked.to_rows())
        except RequestError as error:
            raise transcriptions.of_the_file(error) from error
        body, media_type = transcriptions.Transcript.of_row(answer).render(asked.response_format)
        return Response(body, media_type=media_type)

    # --- the plain way

    async def predict(self, request: Request) -> Response:
        route = self._version(request)
        body = PredictBody(await request.body(), request.headers.get("content-type", ""))
        return Response(await self._models.predict(route, body), media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        """What this module serves, as a document."""
        return JSONResponse(openapi.document(self._models.routes()))

    # --- Open Inference Protocol

    async def server(self, request: Request) -> Response:
        return JSONResponse(open_inference.SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Every model can be asked."""
        ready = all([await self._models.ready(route) for route in self._models.routes()])
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._version(request).metadata())

    async def model_ready(self, request: Request) -> Response:
        route = self._version(request)
        ready = await self._models.ready(route)
        return JSONResponse({"name": route.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        route = self._version(request)
        body = InferBody.of_http(await request.body(), request.headers.get(LENGTH_HEADER))
        answer = await self._models.infer(route, body)
        if answer.json_length is None:
            return Response(answer.data, media_type="application/json")
        headers = {LENGTH_HEADER: str(answer.json_length)}
        return Response(answer.data, headers=headers, media_type="application/octet-stream")

    def _version(self, request: Request) -> Route:
        return self._models.route(request.path_params["name"], request.path_params.get("version", ""))


def openai_path(route: Route) -> str:
    """Where OpenAI's API asks for what a model does. Empty: nowhere."""
    if route.kind == "generate":
        return "/v1/completions or /v1/chat/completions"
    paths = {embeddings.TASK: "/v1/embeddings", transcriptions.TASK: "/v1/audio/transcriptions"}
    return paths.get(route.task, "")


def _elsewhere(route: Route) -> RequestError:
    """Why a model is not asked at this path."""
    path = openai_path(route) or f"/v1/models/{route.name}/predict"
    return RequestError(
        f"The model {route.name!r} does {route.task}; ask it at {path}.", param="model", code="model_not_supported"
    )
