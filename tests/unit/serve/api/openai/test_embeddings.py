"""OpenAI's embeddings over models that answer rows: shapes, parts of a large request, errors that name the input."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api.app import create_app
from maas_ray.serve.routes import Route
from maas_ray.tasks.text.embeddings import FeatureExtractionSpec
from maas_ray.tasks.text.tokenization import FittedTokenizer
from tests.support.models import InProcess, route, send

TASK = FeatureExtractionSpec(tokenizer=FittedTokenizer(vocab_size=300), max_length=8).fit(
    [{"anchor": "a", "positive": "b"}]
)


class Embeddings(InProcess):
    """A real task with a network that knows the length of a text; and a model of another task."""

    def __init__(self) -> None:
        super().__init__(route("img", "predict", task="image-classification"), tasks={"emb": TASK})
        self.parts: list[int] = []

    def outputs(self, route: Route, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        self.parts.append(len(rows))
        if any(row.get("text") == "busy" for row in rows):
            raise RequestError("full", status=429, code="overloaded")
        return [
            {"embedding": np.float32([0.1, len(str(row["text"]))]), "tokens": 2}
            if "text" in row
            else {"embedding": np.float32([0.2, row["tokens"].sum()]), "tokens": len(row["tokens"])}
            for row in rows
        ]


MODELS = Embeddings()
APP = create_app(MODELS, body_limit=1_000_000)


def ask(method: str = "POST", path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
    return send(APP, method, path, json={"model": "emb", **body} if method == "POST" else None)


@pytest.mark.parametrize(
    ("asked", "vectors", "tokens"),
    [
        ("abc", [[0.1, 3]], 2),
        (["abc", "d"], [[0.1, 3], [0.1, 1]], 4),
        ([5, 6, 7], [[0.2, 18]], 3),
        ([[5, 6], [7]], [[0.2, 11], [0.2, 7]], 3),
    ],
)
def test_each_kind_of_input_gets_its_embeddings(asked: Any, vectors: list[list[float]], tokens: int) -> None:
    document = ask(input=asked).json()
    assert document == {
        "object": "list",
        "model": "emb",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    coded = ask(input=asked, encoding_format="base64").json()["data"]
    for one, vector in zip(coded, vectors, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), np.float32(vector))


def test_many_inputs_are_sent_in_parts_and_stay_in_order() -> None:
    MODELS.parts = []
    found = ask(input=["a" * (1 + place % 6) for place in range(600)]).json()
    assert MODELS.parts == [256, 256, 88]
    assert [one["index"] for one in found["data"]] == list(range(600))
    assert [one["embedding"][1] for one in found["data"]] == [1 + place % 6 for place in range(600)]
    assert found["usage"]["total_tokens"] == 1200


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": "a" * 5000}, 400, "input", "8 tokens"),
        ({"input": ["a"] * 300 + ["b" * 5000]}, 400, "input[300]", "8 tokens"),
        ({"input": [[5], [9999]]}, 400, "input[1]", "9999"),
        ({"input": ""}, 400, "input", "string too short"),
        ({"input": []}, 400, "input", "array too short"),
        ({"input": ["a", ""]}, 400, "input[1]", "string too short"),
        ({"input": ["a", 5]}, 400, "input[1]", "input[1]"),
        ({"input": ["a"] * 2049}, 400, "input", "2049"),
        ({}, 400, "input", "'input'"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions", "'dimensions' is 3"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", "encoding_format"),
        ({"input": "a", "stream": True}, 400, "stream", "'stream'"),
        ({"input": "busy"}, 429, None, "full"),
        ({"input": "a", "model": "img"}, 400, "model", "/v1/models/img/predict"),
        ({"input": "a", "model": "none"}, 404, "model", "none"),
    ],
)
def test_wrong_embedding_requests_are_refused_in_openais_shape(
    body: Any, status: int, param: str | None, message: str
) -> None:
    answer = ask(**body)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["param"] == param
    assert message in error["message"]


def test_embedding_models_are_listed_and_refuse_completions() -> None:
    assert [card["id"] for card in ask("GET", "/v1/models").json()["data"]] == ["emb"]
    assert ask("GET", "/v1/models/emb").json()["id"] == "emb"
    assert ask("GET", "/v1/models/img").json() == {"name": "img", "ready": True}  # not a model of this API
    answer = ask(path="/v1/completions", prompt="a")
    assert answer.status_code == 400
    assert "/v1/embeddings" in answer.json()["error"]["message"]


def test_the_openai_client_reads_embeddings_and_errors() -> None:
    """It asks for base64 of its own accord, and decodes it."""
    from openai import AsyncOpenAI, BadRequestError, NotFoundError

    async def asked() -> None:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(APP))
        async with AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as client:
            for more in ({}, {"encoding_format": "float"}):
                answer = await client.embeddings.create(model="emb", input=["abc", "d"], **more)
                np.testing.assert_allclose([one.embedding for one in answer.data], [[0.1, 3], [0.1, 1]], rtol=1e-6)
                assert answer.usage.total_tokens == 4
            assert [model.id async for model in client.models.list()] == ["emb"]
            with pytest.raises(BadRequestError, match=r"input\[1\]"):
                await client.embeddings.create(model="emb", input=["a", "b" * 100])
            with pytest.raises(NotFoundError):
                await client.embeddings.create(model="none", input="a")

    asyncio.run(asked())
