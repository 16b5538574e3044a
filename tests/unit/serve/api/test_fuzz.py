"""Whatever is asked, the gateway answers as its OpenAPI document says, and never with a fault of its own."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
import schemathesis
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from maas_ray.serve.api import openapi
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.api.predict import Head, PredictBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.replicas.text_rows import TextRows
from maas_ray.serve.routes import Route
from maas_ray.serve.text.types import Delta, TextRequest, TokenLogprob
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.bundles import image_task, series_task, table_task, text_task
from tests.support.models import InProcess
from tests.support.speech import file_of, speech_task, spoken

TEXT, IMAGES, TABLE, SERIES, SPEECH = text_task(), image_task(), table_task(), series_task(), speech_task()
EMBEDS = FeatureExtractionSpec(tokenizer=FittedTokenizer(vocab_size=300)).fit([{"anchor": "a", "positive": "b"}])
PREDICTING = {"img": IMAGES, "tab": TABLE, "ser": SERIES, "emb": EMBEDS, "asr": SPEECH}
# The outputs for every row; each task uses its own.
ONE_ROW: dict[str, Any] = {
    "label": np.array("dark", object),
    "scores": np.float32([1, 0]),
    "prediction": np.float64(1.5),
    "forecast": np.zeros(2),
    "embedding": np.float32([0.1, -2]),
    "tokens": np.int64(3),
    "text": np.array("one", object),
    "duration": np.float32(1),
}
EXAMPLES = 30  # for each operation, of those that are drawn; those at the edges of a schema come on top
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
]


class TaskModels(InProcess):
    """Real tasks, an engine that echoes, and a network that knows one answer."""

    def __init__(self) -> None:
        super().__init__(tasks={"lm": TEXT, **PREDICTING})
        self._rows = TextRows(TEXT, self._echo, Head(model="lm", version="3"))

    def _answers(self, request: TextRequest) -> list[Delta]:
        logprobs = (TokenLogprob("a", b"a", -0.5, 0),) if request.sampling.logprobs else ()
        prompts = [prompt for prompt in (request.prompt, *request.more_prompts) for _ in range(request.n)]
        return [Delta(str(prompt), "stop", 1, 1, index, logprobs) for index, prompt in enumerate(prompts)]

    async def _echo(self, request: TextRequest, caller: Caller) -> AsyncGenerator[Delta, None]:
        yield self._answers(request)[0]

    async def complete(self, route: Route, request: TextRequest, *, caller: Caller) -> list[Delta]:
        return self._answers(request)

    async def stream(self, route: Route, request: TextRequest, *, caller: Caller) -> AsyncGenerator[Delta, None]:
        for answer in self._answers(request):
            yield replace(answer, text="a", finish_reason=None)
            yield replace(answer, completion_tokens=2)

    async def infer(self, route: Route, body: InferBody, *, caller: Caller) -> Answer[InferBody]:
        if route.name == "lm":
            return await self._rows.infer(body, caller)
        task = PREDICTING[route.name]
        request = parse_infer(body, task.inputs, task.outputs)
        answer = {name: np.stack([ONE_ROW[name]] * request.rows) for name in request.outputs}
        return Answer(render_infer(request, answer, task.outputs, route.name, "3"), Usage(rows=request.rows))

    async def predict(self, route: Route, body: PredictBody, *, caller: Caller) -> Answer[bytes]:
        if route.name == "lm":
            return await self._rows.predict(body, caller)
        return await super().predict(route, body, caller=caller)

    def outputs(self, route: Route, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: value[()] for name, value in ONE_ROW.items()}] * len(rows)


APP = create_app(TaskModels(), body_limit=100_000)
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", APP)


def test_the_document_is_valid_openapi() -> None:
    DOCUMENT.validate()


def test_the_document_has_every_path_and_no_other() -> None:
    served = {
        (route.path, method)
        for route in APP._app._app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
        if route.path != "/openapi.json"
    }
    said = {(path, method.upper()) for path, item in openapi.document(())["paths"].items() for method in item}
    assert said == served


@DOCUMENT.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.generate, hypothesis.Phase.explicit],
)
def test_answers_to_any_request_follow_the_openapi_document(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


PIXELS = {"name": "image", "datatype": "UINT8", "shape": [2, 8, 8, 1], "data": [0] * 128}
COLUMNS = [
    {"name": "area", "datatype": "FP64", "shape": [2], "data": [70, None]},
    {"name": "town", "datatype": "BYTES", "shape": [2], "data": [None, "Bonn"]},
]
STEPS = {"name": "values", "datatype": "FP64", "shape": [1, 3, 2], "data": [1, 2, 3, None, 5, 6]}
PROMPTS = {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
RIGHT = {
    "completion": ("/v1/completions", "", {"model": "lm", "prompt": "a"}),
    "completion, streamed": ("/v1/completions", "", {"model": "lm", "prompt": "a", "stream": True}),
    "chat": ("/v1/chat/completions", "", {"model": "lm", "messages": [{"role": "user", "content": "a"}]}),
    "chat, streamed": (
        "/v1/chat/completions",
        "",
        {"model": "lm", "messages": [{"role": "user", "content": "a"}], "stream": True}
        | {"stream_options": {"include_usage": True}},
    ),
    "embedding": ("/v1/embeddings", "", {"model": "emb", "input": "a", "dimensions": 2, "user": "me"}),
    "embeddings": ("/v1/embeddings", "", {"model": "emb", "input": [[5, 6], [7]], "encoding_format": "base64"}),
    "row of text": ("/v1/models/{name}/predict", "emb", {"text": "a", "truncate": False}),
    "row": ("/v1/models/{name}/predict", "img", {"image": [[0, 255], [0, 255]]}),
    "rows": ("/v1/models/{name}/versions/{version}/predict", "img", {"instances": [{"image": [[[1, 2, 3]]]}]}),
    "cells": ("/v1/models/{name}/predict", "tab", {"area": 70, "town": None}),
    "tables": ("/v1/models/{name}/predict", "tab", {"instances": [{"area": None}, {"town": "Paris"}, {}]}),
    "columns": ("/v2/models/{name}/infer", "tab", {"inputs": COLUMNS}),
    "series": ("/v1/models/{name}/predict", "ser", {"values": [[1, 2], [None, 3.5], [4, 5], [6, None]]}),
    "steps": ("/v2/models/{name}/infer", "ser", {"inputs": [STEPS]}),
    "text": ("/v1/models/{name}/predict", "lm", {"prompt": "a", "max_tokens": 5, "stop": ["x"]}),
    "tensors": ("/v2/models/{name}/infer", "img", {"inputs": [PIXELS], "id": "1"}),
    "tensors as bytes": (
        "/v2/models/{name}/infer",
        "img",
        {"inputs": [PIXELS], "parameters": {"binary_data_output": True}},
    ),
    "text as a tensor": (
        "/v2/models/{name}/versions/{version}/infer",
        "lm",
        {"inputs": [PROMPTS], "parameters": {"max_tokens": 3, "temperature": 0}},
    ),
}


@pytest.mark.parametrize(("path", "name", "body"), RIGHT.values(), ids=RIGHT)
def test_answers_to_valid_requests_follow_the_openapi_document(path: str, name: str, body: dict) -> None:
    place = {"path_parameters": {"name": name} | ({"version": "3"} if "{version}" in path else {})} if name else {}
    case = DOCUMENT[path]["POST"].Case(body=body, media_type="application/json", **place)
    assert case.call_and_validate(checks=CHECKS).status_code == 200


@pytest.mark.parametrize("shape", ["json", "verbose_json", "text", "srt", "vtt"])
def test_transcripts_follow_the_openapi_document(shape: str) -> None:
    body = {"file": file_of(spoken("one")), "model": "asr", "response_format": shape, "language": "en"}
    case = DOCUMENT["/v1/audio/transcriptions"]["POST"].Case(body=body, media_type="multipart/form-data")
    answer = case.call_and_validate(checks=CHECKS)
    assert answer.status_code == 200
    assert "one" in answer.text
