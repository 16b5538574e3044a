"""The HTTP API as an OpenAPI 3.1 document, generated from the models that parse requests.

The document therefore cannot differ from the requests that are accepted. `app` has the paths, and `response_schemas`
the schemas of schemas.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from maas_ray.serve.api import predict
from maas_ray.serve.api import response_schemas as schemas
from maas_ray.serve.api.multipart import FORM_TYPE
from maas_ray.serve.api.open_inference.tensors import LENGTH_HEADER, InferDocument
from maas_ray.serve.api.openai import embeddings, transcriptions
from maas_ray.serve.api.openai import requests as openai
from maas_ray.serve.routes import Route
from maas_ray.tasks import TASKS
from maas_ray.version import __version__

_Document = dict[str, Any]
_Answers = Mapping[int, Any]  # status → a model or a schema
_JSON = "application/json"
_SEVERAL = "timestamp_granularities"
_BYTES = "application/octet-stream"
_ERRORS = {
    400: "The request is wrong; the message says where and how.",
    404: "No such model, or no such version of it, is served here.",
    408: "The body did not arrive in time.",
    413: "The body is larger than the limit.",
    415: "The body's `Content-Encoding` is not supported.",
    429: "All replicas are busy and the queue is full; `Retry-After` says when to retry.",
    500: "A fault of the server; the cause is in its log.",
    503: "The model is unavailable for now; `Retry-After` says when to retry.",
    504: "The model did not answer in time; the request was cancelled.",
}
_CALL_ERRORS = (400, 404, 408, 413, 415, 429, 500, 503, 504)
_READ_ERRORS = (404, 500)
_ANSWERS: tuple[type[BaseModel], ...] = (
    schemas.Completion,
    schemas.CompletionChunk,
    schemas.ChatCompletion,
    schemas.ChatCompletionChunk,
    schemas.EmbeddingList,
    schemas.Transcription,
    schemas.TranscriptionVerbose,
    schemas.Model,
    schemas.ModelList,
    schemas.Error,
    schemas.Server,
    schemas.Live,
    schemas.Ready,
    schemas.ModelReady,
    schemas.ModelMetadata,
    schemas.InferAnswer,
    schemas.InferenceError,
    predict.Head,
    *(task.answer for task in TASKS),
)
_REQUESTS: tuple[type[BaseModel], ...] = (
    openai.CompletionBody,
    openai.ChatBody,
    embeddings.EmbeddingBody,
    InferDocument,
    *dict.fromkeys(task.request for task in TASKS),
)


def document(routes: Sequence[Route]) -> _Document:
    """The document of a gateway.

    Args:
        routes: the routes that it serves now; their names are parameters of paths.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "maas_ray",
            "version": __version__,
            "description": "Models behind one gateway: OpenAI's API for text, embeddings and speech, and for every "
            "task the Open Inference Protocol and `predict`.",
        },
        "paths": {**_openai(routes), **_speech(routes), **_plain(routes), **_open_inference(routes)},
        "components": {"schemas": _schemas()},
    }


@cache
def _schemas() -> _Document:
    """Every model by its name."""
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (model, "validation") for model in (*_REQUESTS, *_ANSWERS)
    ]
    _, document = models_json_schema(models, ref_template="#/components/schemas/{model}")
    definitions: _Document = document["$defs"]
    return definitions


def _openai(routes: Sequence[Route]) -> _Document:
    generating = [route for route in routes if route.kind == "generate"]
    embedding = [route for route in routes if route.task == embeddings.TASK]
    name = [_path("name", "Public model name.", _names(routes))]
    listed = _operation(
        "list_models",
        "Models for text, embeddings and speech",
        "OpenAI",
        schemas.Error,
        (500,),
        {200: schemas.ModelList},
    )
    card = _operation(
        "get_model",
        "One model, and its readiness as version 1 of KServe's protocol has it",
        "OpenAI",
        schemas.Error,
        _READ_ERRORS,
        {200: {"anyOf": [_ref(schemas.Model), _ref(schemas.ModelReady)]}},
        parameters=name,
    )
    paths: _Document = {"/v1/models": {"get": listed}, "/v1/models/{name}": {"get": card}}
    for path, body, answer, chunk in (
        ("completions", openai.CompletionBody, schemas.Completion, schemas.CompletionChunk),
        ("chat/completions", openai.ChatBody, schemas.ChatCompletion, schemas.ChatCompletionChunk),
    ):
        operation = _operation(
            f"create_{path.replace('/', '_')}",
            "Text that follows a prompt" if body is openai.CompletionBody else "Next message of a chat",
            "OpenAI",
            schemas.Error,
            _CALL_ERRORS,
            {200: answer},
            body={_JSON: _of_models(body, generating)},
        )
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _event(chunk)}
        paths[f"/v1/{path}"] = {"post": operation}
    embedded = _operation(
        "create_embeddings",
        "Texts as vectors",
        "OpenAI",
        schemas.Error,
        _CALL_ERRORS,
        {200: schemas.EmbeddingList},
        body={_JSON: _of_models(embeddings.EmbeddingBody, embedding)},
    )
    paths["/v1/embeddings"] = {"post": embedded}
    return paths


def _of_models(body: type[BaseModel], routes: Iterable[Route]) -> _Document:
    """A body whose `model` is one of these routes."""
    return {"allOf": [_ref(body), {"type": "object", "properties": {"model": _names(routes)}}]}


def _speech(routes: Sequence[Route]) -> _Document:
    """Transcriptions. As in OpenAI's clients, the name of a form's field that may be repeated ends with `[]`."""
    names = _names(route for route in routes if route.task == transcriptions.TASK)
    fields = transcriptions.TranscriptionBody.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = fields["properties"] | {
        "model": names,
        predict.FILE: {"type": "string", "contentMediaType": _BYTES},
    }
    properties[f"{_SEVERAL}[]"] = properties.pop(_SEVERAL)
    form = fields | {"properties": properties}
    operation = _operation(
        "create_transcription",
        "Text of an audio file",
        "OpenAI",
        schemas.Error,
        _CALL_ERRORS,
        {200: {"anyOf": [_ref(schemas.Transcription), _ref(schemas.TranscriptionVerbose)]}},
        body={FORM_TYPE: form},
    )
    operation["responses"]["200"]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return {"/v1/audio/transcriptions": {"post": operation}}


def _event(chunk: type[BaseModel]) -> _Document:
    """One server-sent event, with `stream: true`. The last event is `[DONE]`, or an error."""
    document = {"contentMediaType": _JSON, "contentSchema": {"anyOf": [_ref(chunk), _ref(schemas.Error)]}}
    return {
        "type": "object",
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, document]}},
        "required": ["data"],
    }


def _plain(routes: Sequence[Route]) -> _Document:
    row = {"anyOf": [_ref(request) for request in dict.fromkeys(task.request for task in TASKS)]}
    answer = {"anyOf": [_ref(task.answer) for task in TASKS]}
    several = {"type": "array", "items": row, "minItems": 1, "maxItems": predict.MAX_ROWS}
    file = _object(**{predict.FILE: {"type": "string", "contentMediaType": _BYTES}})
    body = {
        _JSON: {"anyOf": [*row["anyOf"], _object(instances=several)]},
        FORM_TYPE: {
            "anyOf": [file, *map(_ref, dict.fromkeys(task.request for task in TASKS if not task.file))],
        },
    }
    many = _object(predictions={"type": "array", "items": answer})
    del many["additionalProperties"]  # the fields of `Head` come before them
    said = {"allOf": [_ref(predict.Head), {"anyOf": [*answer["anyOf"], many]}]}
    return {
        f"/v1/models/{{name}}{tail}": {
            "post": _operation(
                name,
                "Answers in the task's own terms, to a row or to several `instances`",
                "predict",
                schemas.Error,
                _CALL_ERRORS,
                {200: said},
                body=body,
                parameters=_model(routes, version),
            )
        }
        for name, version, tail in (
            ("predict", "", "/predict"),
            ("predict_version", "/versions/{version}", "/versions/{version}/predict"),
            ("predict_kserve", "", ":predict"),  # the verb of version 1 of KServe's protocol
        )
    }


def _open_inference(routes: Sequence[Route]) -> _Document:
    def get(name: str, summary: str, success: _Answers, errors: Iterable[int], parameters: Any = ()) -> _Document:
        return {
            "get": _operation(
                name, summary, "Open Inference Protocol", schemas.InferenceError, errors, success, parameters=parameters
            )
        }

    paths: _Document = {
        "/v2": get("server_metadata", "The server", {200: schemas.Server}, (500,)),
        "/v2/health/live": get("server_live", "Liveness of the gateway", {200: schemas.Live}, (500,)),
        "/v2/health/ready": get(
            "server_ready", "Readiness of all models", {200: schemas.Ready, 503: schemas.Ready}, (500,)
        ),
    }
    length = {
        "name": LENGTH_HEADER,
        "in": "header",
        "description": "Length of the JSON document, if tensors follow it as bytes.",
        "schema": {"type": "integer", "minimum": 0},
    }
    for version in ("", "/versions/{version}"):
        parameters, path, tail = _model(routes, version), f"/v2/models/{{name}}{version}", "_version" if version else ""
        ready = {200: schemas.ModelReady, 503: schemas.ModelReady}
        paths[path] = get(
            f"model_metadata{tail}",
            "Inputs and outputs of a model",
            {200: schemas.ModelMetadata},
            _READ_ERRORS,
            parameters,
        )
        paths[f"{path}/ready"] = get(f"model_ready{tail}", "Readiness of a model", ready, _READ_ERRORS, parameters)
        infer = _operation(
            f"infer{tail}",
            "Tensors in, tensors out",
            "Open Inference Protocol",
            schemas.InferenceError,
            _CALL_ERRORS,
            {200: schemas.InferAnswer},
            body={_JSON: _ref(InferDocument), _BYTES: {"type": "string", "format": "binary"}},
            parameters=[*parameters, length],
        )
        infer["responses"]["200"]["content"][_BYTES] = {"schema": {"type": "string", "format": "binary"}}
        paths[f"{path}/infer"] = {"post": infer}
    return paths


def _operation(
    name: str,
    summary: str,
    tag: str,
    error: type[BaseModel],
    errors: Iterable[int],
    success: _Answers,
    *,
    body: _Document | None = None,
    parameters: Sequence[_Document] = (),
) -> _Document:
    """One operation.

    Args:
        name: unique.
        summary: in a few words.
        tag: where it is listed.
        error: how errors look.
        errors: their statuses.
        success: schemas of the other answers, by status.
        body: schemas of a request's body, by type.
        parameters: of its path and headers.
    """
    described = {status: (HTTPStatus(status).phrase, answer) for status, answer in success.items()}
    described |= {status: (_ERRORS[status], error) for status in errors}
    responses: _Document = {
        str(status): {"description": text, "content": {_JSON: {"schema": _ref(schema)}}}
        for status, (text, schema) in sorted(described.items())
    }
    for status in {429, 503}.intersection(errors):
        responses[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    operation: _Document = {"operationId": name, "summary": summary, "tags": [tag], "responses": responses}
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _model(routes: Sequence[Route], version: str) -> list[_Document]:
    parameters = [_path("name", "Public model name.", _names(routes))]
    if version:
        numbers = sorted({route.number for route in routes})
        parameters.append(_path("version", "The number of the version that is served.", _one_of(numbers)))
    return parameters


def _names(routes: Iterable[Route]) -> _Document:
    return _one_of([route.name for route in routes])


def _one_of(values: list[str]) -> _Document:
    return {"type": "string"} | ({"enum": values} if values else {"minLength": 1})


def _path(name: str, description: str, schema: _Document) -> _Document:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _object(**properties: _Document) -> _Document:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _ref(model: Any) -> _Document:
    """A reference to a model's schema in the document; a schema stays as it is."""
    return model if isinstance(model, dict) else {"$ref": f"#/components/schemas/{model.__name__}"}
