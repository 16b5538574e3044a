"""Rows for a generating model, from `predict` or as tensors of the Open Inference Protocol.

The tensors of a row and the parameters of a request are the fields of the task's own row, so both APIs are validated
by the same rules. Knows nothing of engines or Serve.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from maas_ray.errors import RequestError
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.api.predict import MAX_ROWS, Head, PredictBody, Rows, parse_rows
from maas_ray.serve.api.validation import request_error
from maas_ray.serve.caller import Caller
from maas_ray.serve.text.types import Delta, SamplingParams, TextRequest
from maas_ray.tasks import RequestRow
from maas_ray.tasks.text.generation import TextGeneration, TextRow


class TextRows:
    """Answers requests of several rows, each row by a generation of its own.

    Args:
        task: the model's.
        generate: yields an answer piece by piece, or a client's error as the first and only item.
        head: the model and version that every answer names.
        max_rows: most rows in a request.
    """

    def __init__(
        self,
        task: TextGeneration,
        generate: Callable[[TextRequest, Caller], AsyncGenerator[Delta | RequestError, None]],
        head: Head,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self._task, self._generate, self._head = task, generate, head
        self._max_rows = min(max_rows, MAX_ROWS)

    async def predict(self, body: PredictBody, caller: Caller) -> Answer[bytes]:
        """The answer to rows in the task's own terms.

        Raises:
            RequestError: the request is wrong.
        """
        request = parse_rows(body, self._task, self._max_rows)
        texts = await self._generate_all(request, caller)
        rendered = request.render([self._task.to_answer({"text": text.text}) for text in texts], self._head)
        return Answer(rendered, _usage(texts))

    async def infer(self, body: InferBody, caller: Caller) -> Answer[InferBody]:
        """The answer to an Open Inference request.

        Raises:
            RequestError: the request is wrong.
        """
        task = self._task
        tensors = {tensor.name for tensor in task.inputs}
        parameters = [name for name in task.request.model_fields if name not in tensors]
        request = parse_infer(body, task.inputs, task.outputs, parameters, self._max_rows)
        try:
            rows: list[RequestRow] = [
                task.request.model_validate(
                    {name: array[row] for name, array in request.inputs.items()} | request.parameters
                )
                for row in range(request.rows)
            ]
        except ValidationError as error:
            raise request_error(error, within="parameters") from error
        texts = await self._generate_all(Rows(rows, many=False), caller)
        outputs = {"text": np.array([text.text for text in texts], dtype=object)}
        rendered = render_infer(request, outputs, task.outputs, self._head.model, self._head.version)
        return Answer(rendered, _usage(texts))

    async def _generate_all(self, request: Rows, caller: Caller) -> "list[_Text]":
        """Texts in the order of the rows, generated concurrently; the first error cancels the others."""

        async def generate(index: int, row: Any) -> _Text:
            with request.at(index):
                text, last = "", None
                async with aclosing(self._generate(text_request(row), caller)) as deltas:
                    async for delta in deltas:
                        if isinstance(delta, RequestError):
                            raise delta
                        text, last = text + delta.text, delta
                return _Text(text, last.prompt_tokens if last else 0, last.completion_tokens if last else 0)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(generate(index, row)) for index, row in enumerate(request.rows)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


@dataclass(frozen=True)
class _Text:
    """A generated text, and its numbers of tokens."""

    text: str
    prompt_tokens: int
    completion_tokens: int


def _usage(texts: list[_Text]) -> Usage:
    return Usage(
        rows=len(texts),
        prompt_tokens=sum(text.prompt_tokens for text in texts),
        completion_tokens=sum(text.completion_tokens for text in texts),
    )


def text_request(row: TextRow) -> TextRequest:
    """The request for one row."""
    return TextRequest(
        prompt=row.prompt,
        max_tokens=row.max_tokens,
        sampling=SamplingParams.of(row),
        stop=(row.stop,) if isinstance(row.stop, str) else tuple(row.stop or ()),
        seed=row.seed,
    )
