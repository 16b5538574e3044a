"""Text asked for row by row, the plain way or as tensors, by a model that generates.

A row's tensors and a request's parameters are the fields of the task's own row, so both ways are checked by the
same rules. Knows nothing of engines or Serve.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np
from pydantic import ValidationError

from maas_ray.errors import RequestError
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.api.openai.requests import refusal
from maas_ray.serve.api.predict import MOST_ROWS, Head, PredictBody, Rows, parse_rows
from maas_ray.serve.text.codec import Delta, TextRequest
from maas_ray.tasks import RequestRow
from maas_ray.tasks.text.generation import TextGeneration, TextRow


class Generating:
    """Requests of several rows to a model that generates.

    Args:
        task: the model's.
        generate: gives an answer as it grows, or a client's error as the first and only item.
        head: whose answers they are.
        most: rows that one request may have.
    """

    def __init__(
        self,
        task: TextGeneration,
        generate: Callable[[TextRequest], AsyncGenerator[Delta | RequestError, None]],
        head: Head,
        most: int = MOST_ROWS,
    ) -> None:
        self._task, self._generate, self._head = task, generate, head
        self._most = min(most, MOST_ROWS)

    async def predict(self, body: PredictBody) -> bytes:
        """A request in the task's words to its answer.

        Raises:
            RequestError: it is wrong.
        """
        asked = parse_rows(body, self._task, self._most)
        texts = await self._answers(asked)
        return asked.render([self._task.to_answer({"text": text}) for text in texts], self._head)

    async def infer(self, body: InferBody) -> InferBody:
        """An Open Inference request to its answer.

        Raises:
            RequestError: it is wrong.
        """
        task = self._task
        tensors = {tensor.name for tensor in task.inputs}
        parameters = [name for name in task.request.model_fields if name not in tensors]
        request = parse_infer(body, task.inputs, task.outputs, parameters)
        if request.rows > self._most:
            raise RequestError(f"inputs: at most {self._most} rows in a request; found {request.rows}.", param="inputs")
        try:
            rows: list[RequestRow] = [
                task.request.model_validate(
                    {name: array[row] for name, array in request.inputs.items()} | request.parameters
                )
                for row in range(request.rows)
            ]
        except ValidationError as error:
            raise refusal(error, within="parameters") from error
        texts = np.array(await self._answers(Rows(rows, many=False)), dtype=object)
        return render_infer(request, {"text": texts}, task.outputs, self._head.model, self._head.version)

    async def _answers(self, asked: Rows) -> list[str]:
        """Texts in the order of the rows, generated together; the first error ends the others."""

        async def one(number: int, row: Any) -> str:
            with asked.at(number):
                text = ""
                async with aclosing(self._generate(text_request(row))) as deltas:
                    async for delta in deltas:
                        if isinstance(delta, RequestError):
                            raise delta
                        text += delta.text
                return text

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, row)) for number, row in enumerate(asked.rows)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


def text_request(row: TextRow) -> TextRequest:
    return TextRequest(
        prompt=row.prompt,
        max_tokens=row.max_tokens,
        temperature=row.temperature,
        top_p=row.top_p,
        stop=(row.stop,) if isinstance(row.stop, str) else tuple(row.stop or ()),
        seed=row.seed,
    )
