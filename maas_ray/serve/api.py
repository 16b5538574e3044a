"""The gateway's HTTP application: paths to models. See `gateway` for Serve's part.

A request goes from the `Guard` to one of the APIs, and from there through `Models` to a model application.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from maas_ray.errors import ModelNotFoundError, RequestError
from maas_ray.serve import open_inference, openai, openai_answers
from maas_ray.serve.guard import App, Guard, parse_json
from maas_ray.serve.models import Models
from maas_ray.serve.open_inference import LENGTH_HEADER, InferBody
from maas_ray.serve.routes import Route


class _Api(Starlette):
    """Starlette's router alone: the guard around it is the one layer that makes errors into answers."""

    def build_middleware_stack(self) -> App:
        return self.router


def create_app(models: Models, *, body_limit: int) -> App:
    """The gateway's HTTP application."""
    endpoints = _Endpoints(models)
    v2 = "/v2/models/{name}"
    routes = [
        HttpRoute("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        HttpRoute("/v1/completions", endpoints.completions, methods=["POST"]),
        HttpRoute("/v1/models", endpoints.list_models),
        HttpRoute("/v1/models/{name}", endpoints.model),
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
    ]
    api = _Api(routes=routes)
    api.router.redirect_slashes = False
    shapes = {"/v2": open_inference.error_shape, "": openai_answers.error_shape}
    return Guard(api, body_limit=body_limit, shapes=shapes)


class _Endpoints:
    """What each path does."""

    def __init__(self, models: Models) -> None:
        self._models = models

    # --- OpenAI

    async def list_models(self, request: Request) -> Response:
        """The models that this API can be asked."""
        served = [route for route in self._models.routes() if route.kind == "generate"]
        cards = [openai_answers.model_card(route.name, route.created) for route in served]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        route = self._generating(request.path_params["name"])
        return JSONResponse(openai_answers.model_card(route.name, route.created))

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
            raise RequestError(
                f"The model {name!r} does {route.task}; ask it at /v2/models/{name}/infer.",
                param="model",
                code="model_not_supported",
            )
        return route

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
        route = self._version(request)
        return JSONResponse(
            {
                "name": route.name,
                "versions": [route.number],
                "platform": f"maas_ray_{route.task}",
                **route.model_dump(mode="json", include={"inputs", "outputs"}),
            }
        )

    async def model_ready(self, request: Request) -> Response:
        route = self._version(request)
        ready = await self._models.ready(route)
        return JSONResponse({"name": route.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        route = self._version(request)
        if route.kind != "predict":
            raise RequestError(f"The model {route.name!r} does {route.task}; ask it at /v1/completions.")
        body = InferBody.of_http(await request.body(), request.headers.get(LENGTH_HEADER))
        answer = await self._models.infer(route, body)
        if answer.json_length is None:
            return Response(answer.data, media_type="application/json")
        headers = {LENGTH_HEADER: str(answer.json_length)}
        return Response(answer.data, headers=headers, media_type="application/octet-stream")

    def _version(self, request: Request) -> Route:
        route = self._models.route(request.path_params["name"])
        version = request.path_params.get("version", route.number)
        if version != route.number:
            raise ModelNotFoundError(f"{route.name} version {version}", [f"{route.name} version {route.number}"])
        return route
