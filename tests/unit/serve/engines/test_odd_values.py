"""Odd values in every field of a number: an answer, or an error that names the field; and then the next request."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.predict import Head
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
from maas_ray.serve.engines.restarting import RestartingEngine
from maas_ray.serve.model_app import Generator
from maas_ray.serve.replicas.direct import SingleModel
from maas_ray.serve.replicas.text_rows import TextRows
from maas_ray.serve.text.codec import TextCodec
from tests.support.engines import TASK
from tests.support.models import route

VALUES: list[Any] = [0, -0.0, 1e-320, 1e-300, 1e-45, 2e-38, 1e-30, 1e38, 1e308, -1e308, -1, 0.5, 1, True, "1", None]
VALUES += [2**31, 2**63 - 1, 2**63, 2**64, 2**200]
NUMBERS = ["temperature", "top_p", "max_tokens", "n", "seed", "frequency_penalty", "presence_penalty", "logit_bias"]
FIELDS = {
    "/v1/completions": [*NUMBERS, "logprobs", "best_of", "prompt"],
    "/v1/chat/completions": [*NUMBERS, "max_completion_tokens", "top_logprobs", "const"],
    "/v1/models/lm:predict": ["temperature", "top_p", "max_tokens", "seed"],
    "/v2/models/lm/infer": ["temperature", "top_p", "max_tokens", "seed", "shape", "binary_data_size"],
}
PLAIN = {"model": "lm", "prompt": "def add(", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def generator(model: Converted) -> Iterator[Generator]:
    """A replica's generator around an engine that the test can see."""
    limits = {"threads": 1, "max_requests": 32, "kv_cache_bytes": 10**9, "prefill_tokens": 64}
    generator = Generator.__new__(Generator)
    generator.in_progress = 0
    generator._engine = RestartingEngine(lambda: OpenVinoEngine(model, **limits))
    generator._codec = TextCodec(TASK, model.context, model.end_ids, generator._engine.supports)
    generator._rows = TextRows(TASK, generator.generate, Head(model="lm", version="3"))
    yield generator
    generator.close()


def body(path: str, field: str, value: Any) -> dict[str, Any]:
    if "predict" in path:
        return {"prompt": "hi", "max_tokens": 2, field: value}
    if "infer" in path:
        tensor: dict[str, Any] = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["hi"]}
        if field == "shape":
            return {"inputs": [tensor | {"shape": [value]}]}
        if field == "binary_data_size":
            return {"inputs": [tensor | {"parameters": {field: value}}]}
        return {"inputs": [tensor], "parameters": {"max_tokens": 2, field: value}}
    chat = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    asked: dict[str, Any] = {"model": "lm", "max_tokens": 2} | chat
    if field == "const":
        schema = {"name": "a", "schema": {"const": value}}
        return asked | {"response_format": {"type": "json_schema", "json_schema": schema}, "max_tokens": 40}
    if field == "prompt":
        return asked | {"prompt": [value]}
    if field == "logit_bias":
        return asked | {"logit_bias": {"5": value}}
    return asked | {field: value} | ({"logprobs": True} if field == "top_logprobs" else {})


def test_odd_values_get_an_answer_or_an_error_that_names_the_field(generator: Generator) -> None:
    app = create_app(SingleModel(generator, route("lm", "generate")), body_limit=100_000)
    first = generator._engine._engine

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            plain = (await client.post("/v1/completions", json=PLAIN)).json()["choices"]
            for path, fields in FIELDS.items():
                for field in fields:
                    bodies = [body(path, field, value) for value in VALUES]
                    answers = await asyncio.gather(*(client.post(path, json=one) for one in bodies))
                    for asked, answer in zip(bodies, answers, strict=True):
                        check(field, asked, answer)
                    assert (await client.post("/v1/completions", json=PLAIN)).json()["choices"] == plain, field
        assert generator._engine._engine is first  # nothing has killed it

    asyncio.run(ask())


def check(field: str, asked: dict[str, Any], answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400), (asked, answer.text)
    if "model" not in asked:  # predict and the Open Inference Protocol
        assert answer.status_code == 200 or re.search(rf"{field}|inputs\[0\]", answer.text), (asked, answer.text)
    elif answer.status_code == 200:
        choice = answer.json()["choices"][0]
        if field == "const" and choice["finish_reason"] == "stop":
            expected = asked["response_format"]["json_schema"]["schema"]["const"]
            assert json.loads(choice["message"]["content"]) == expected
    else:
        named = answer.json()["error"]["param"]
        # A number of tokens above the context is reported as too much for the prompt.
        given = {field, "prompt", "messages"} if field.startswith("max_") else {field}
        assert named.split("[")[0] in (given if field != "const" else {"response_format"}), (asked, answer.text)


def test_zero_tokens_are_an_empty_completion(generator: Generator) -> None:
    app = create_app(SingleModel(generator, route("lm", "generate")), body_limit=100_000)

    async def ask(**changes: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/completions", json=PLAIN | {"max_tokens": 0} | changes)

    for changes in ({}, {"n": 2}):
        answer = asyncio.run(ask(**changes)).json()
        assert [(one["text"], one["finish_reason"]) for one in answer["choices"]] == [("", "length")] * len(
            answer["choices"]
        )
        prompt = len(TASK.tokenizer.encode(PLAIN["prompt"]).ids)
        assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
    assert '"finish_reason":"length"' in asyncio.run(ask(stream=True)).text
