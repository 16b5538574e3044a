"""OpenAI's API for embeddings: the bodies of requests and answers.

A request reaches its model as rows of `predict`, which every replica answers, shared ones included. The limits of rows
therefore hold here too. Knows nothing of Serve.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from maas_ray.bodies import Body
from maas_ray.errors import RequestError
from maas_ray.serve.api import refusals
from maas_ray.serve.api.model_calls import ModelCalls
from maas_ray.serve.api.predict import MAX_ROWS, PredictBody
from maas_ray.serve.caller import Caller
from maas_ray.serve.routes import Route

TASK = "feature-extraction"
MAX_INPUTS = 2048  # OpenAI's limit
_ATTEMPTS = 3

_Text = Annotated[str, StringConstraints(min_length=1)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class EmbeddingBody(Body):
    """`POST /v1/embeddings`"""

    model: str
    input: _Text | Annotated[list[_Text], Field(min_length=1)] | _Tokens | Annotated[list[_Tokens], Field(min_length=1)]
    """A text, or up to 2048 texts; or each text as the ids of the model's own tokens. An input that is longer than the
    model's limit is refused."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: the numbers as float32, little-endian, in base64."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """The model's own number of dimensions; other values are refused."""
    user: str | None = None
    """No answer depends on it."""

    @model_validator(mode="after")
    def _of_few_inputs(self) -> Self:
        # Checked here, not as a limit of the lists: in a union, the error comes from the branch that got furthest.
        if self.several and len(self.input) > MAX_INPUTS:
            raise PydanticCustomError(
                "invalid_value",
                "'{name}' has {count} items, but may have at most {most}.",
                {"name": "input", "count": len(self.input), "most": MAX_INPUTS},
            )
        return self

    @property
    def several(self) -> bool:
        """True if `input` is an array of inputs."""
        return isinstance(self.input, list) and not isinstance(self.input[0], int)

    def rows(self) -> list[dict[str, Any]]:
        """The inputs as the task's rows."""
        inputs: list[Any] = list(self.input) if self.several else [self.input]
        return [{"text": item, "truncate": False} if isinstance(item, str) else {"tokens": item} for item in inputs]


async def answer(models: ModelCalls, route: Route, body: EmbeddingBody, *, caller: Caller) -> dict[str, Any]:
    """The complete answer; many inputs are sent in parts, one after the other.

    All vectors come from one version: if the route moves between two parts, the first part is sent again.

    Raises:
        RequestError: the model cannot accept an input; names it. Or its route moved again and again.
    """
    rows = body.rows()
    parts = [(start, rows[start : start + MAX_ROWS]) for start in range(0, len(rows), MAX_ROWS)]
    for _ in range(_ATTEMPTS):
        predictions: list[dict[str, Any]] = []
        for start, part in parts:
            asked = PredictBody(json.dumps({"instances": part}).encode(), "application/json")
            with _named(start, body.several):
                answered = await models.predict(route, asked, caller=caller)
            predictions += json.loads(answered.body)["predictions"]
            present = models.route(route.name, caller=caller) if len(parts) > 1 else route
            if present != route:
                if present.task != TASK:
                    raise refusals.of_another_task(route.name, present.version)
                route = present
                break
        else:
            return _document(route, body, predictions)
    raise refusals.unavailable(route.name, "its version changed while it answered")


def _document(route: Route, body: EmbeddingBody, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer's document, from the model's answers to all inputs."""
    data = [
        {"object": "embedding", "index": index, "embedding": _rendered(row["embedding"], body)}
        for index, row in enumerate(rows)
    ]
    tokens = sum(row["tokens"] for row in rows)
    return {
        "object": "list",
        "data": data,
        "model": route.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _rendered(vector: list[float], body: EmbeddingBody) -> list[float] | str:
    if body.dimensions not in (None, len(vector)):
        raise RequestError(
            f"'dimensions' is {body.dimensions}, but this model's embeddings have {len(vector)}. Leave it out.",
            param="dimensions",
            code="invalid_value",
        )
    if body.encoding_format == "base64":
        return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    return vector


@contextmanager
def _named(start: int, several: bool) -> Iterator[None]:
    """Make errors of a row name its input instead."""

    def location(match: re.Match[str]) -> str:
        return f"input[{start + int(match[1])}]" if several else "input"

    try:
        yield
    except RequestError as error:
        message, param = (
            re.sub(r"^instances\[(\d+)\](\.\w+)?", location, text) for text in (error.message, error.param or "")
        )
        if param == error.param:
            raise
        raise RequestError(message, param=param or None, code=error.code, status=error.status) from error
