"""Text by `predict` and `infer`: one row or several, and the first mistake cancels the others."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from maas_ray.errors import PromptTooLongError, RequestError
from maas_ray.serve.api.model_calls import Usage
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import Head, PredictBody
from maas_ray.serve.caller import ANONYMOUS, Caller
from maas_ray.serve.replicas.text_rows import TextRows
from maas_ray.serve.text.types import Delta, SamplingParams, TextRequest
from tests.support.bundles import text_task
from tests.support.errors import raises

TEXT = text_task()
HEAD = Head(model="m", version="3")


class Engine:
    """Says what it was asked, and notes who was cancelled."""

    def __init__(self) -> None:
        self.asked: list[TextRequest] = []
        self.cancelled = 0

    async def generate(self, request: TextRequest, caller: Caller) -> AsyncGenerator[Delta | RequestError, None]:
        self.asked.append(request)
        if request.prompt == "long":
            yield PromptTooLongError(9, 9, 10, "prompt")
            return
        if request.prompt == "bug":
            raise KeyError("bug")
        try:
            await asyncio.sleep(60 if request.prompt == "wait" else 0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield Delta("<", None, 1, 1)
        yield Delta(f"{request.prompt}>", "stop", 1, 2)


def text_rows(engine: Engine, most: int = 8) -> TextRows:
    return TextRows(TEXT, engine.generate, HEAD, most)  # type: ignore[arg-type]


def generate(body: Any, engine: Engine, content_type: str = "application/json", most: int = 8) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = asyncio.run(text_rows(engine, most).predict(PredictBody(data, content_type), ANONYMOUS))
    document = json.loads(answer.body)
    rows = len(document.get("predictions", [document]))
    assert answer.usage == Usage(rows=rows, prompt_tokens=rows, completion_tokens=2 * rows)
    return document


def infer(body: dict, engine: Engine, most: int = 8) -> Any:
    answer = asyncio.run(text_rows(engine, most).infer(InferBody(json.dumps(body).encode()), ANONYMOUS))
    return json.loads(answer.body.data)


def prompts(*texts: str, **changes: Any) -> dict:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], **changes}


def test_predict_generates_text_for_one_row_and_for_several() -> None:
    engine = Engine()
    assert generate({"prompt": "a"}, engine) == {"model": "m", "version": "3", "text": "<a>"}
    asked = {"prompt": "b", "max_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": 7, "stop": ["x"]}
    answer = generate({"instances": [asked, {"prompt": "a", "stop": "y", "top_p": 0}]}, engine)
    assert answer["predictions"] == [{"text": "<b>"}, {"text": "<a>"}]
    assert engine.asked == [
        TextRequest("a", 16),
        TextRequest("b", 5, SamplingParams(temperature=0.0, top_p=0.5), ("x",), 7),
        TextRequest("a", 16, SamplingParams(top_p=0.0), stop=("y",)),
    ]


def test_infer_generates_text_for_each_row() -> None:
    engine = Engine()
    parameters = {"max_tokens": 5, "temperature": 0, "stop": "x", "seed": -1}
    answer = infer(prompts("a", "é", parameters=parameters, id="7"), engine)
    output = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["<a>", "<é>"]}
    assert answer == {"model_name": "m", "model_version": "3", "id": "7", "outputs": [output]}
    assert engine.asked == [TextRequest(text, 5, SamplingParams(temperature=0.0), ("x",), -1) for text in ("a", "é")]


@pytest.mark.parametrize(
    ("body", "param", "code", "named"),
    [
        ({"prompt": 5}, "prompt", "invalid_type", "an integer"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "invalid_value", ">= 1"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "invalid_type", "a string"),
        ({"prompt": "a", "stop": 5}, "stop", "invalid_type", "a string or an array"),
        ({"prompt": "a", "stop": ["a"] * 65}, "stop", "invalid_value", "length 64"),
        ({"prompt": "a", "n": 2}, "n", "unknown_parameter", "'n'"),
        ({"prompt": "long"}, "prompt", "context_length_exceeded", "10 tokens"),
        ({"instances": [{"prompt": "a"}, {"prompt": "long"}]}, "instances[1].prompt", "context_length_exceeded", ""),
        ({"instances": [{"prompt": "a"}, {"prompt": "a", "seed": 2**63}]}, "instances[1].seed", "invalid_value", 2**63),
        ({"instances": [{"prompt": "a"}] * 9}, "instances", "invalid_value", "9 rows"),
    ],
)
def test_a_wrong_prompt_is_named(body: dict, param: str, code: str, named: object) -> None:
    with raises(RequestError, code, named) as caught:
        generate(body, Engine())
    assert (caught.value.param, caught.value.status) == (param, 400)


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        (prompts("a", parameters={"max_tokens": 0}), "invalid_value", "parameters.max_tokens"),
        (prompts("a", parameters={"max_tokens": "5"}), "invalid_type", "parameters.max_tokens"),
        (prompts("a", parameters={"n": 2}), "unknown_parameter", "parameters.n"),
        (prompts("a", parameters={"prompt": "b"}), "unknown_parameter", "parameters.prompt"),
        (prompts("a", "long"), "context_length_exceeded", "10 tokens"),
        (prompts(*"abcdefghi"), "invalid_value", "9 rows"),
        (prompts(), "rows_mismatch", "prompt 0"),
        (prompts("a", outputs=[{"name": "label"}]), "unknown_tensor", "'label'"),
    ],
)
def test_wrong_prompts_as_tensors_are_named(body: dict, code: str, named: str) -> None:
    with raises(RequestError, code, named):
        infer(body, Engine())


def test_the_first_mistake_cancels_the_other_rows() -> None:
    engine = Engine()
    with raises(RequestError, "context_length_exceeded", "instances[1].prompt"):
        generate({"instances": [{"prompt": "wait"}, {"prompt": "long"}, {"prompt": "wait"}]}, engine)
    assert engine.cancelled == 2
    with pytest.raises(KeyError, match="bug"):  # a fault of the engine stays what it is
        generate({"instances": [{"prompt": "wait"}, {"prompt": "bug"}]}, engine)
    assert engine.cancelled == 3


def test_a_client_that_leaves_cancels_every_row() -> None:
    engine = Engine()
    body = json.dumps({"instances": [{"prompt": "wait"}] * 3}).encode()

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(text_rows(engine).predict(PredictBody(body, ""), ANONYMOUS), 0.1)

    asyncio.run(leave())
    assert engine.cancelled == 3
