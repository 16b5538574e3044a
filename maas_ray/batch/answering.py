"""A model that answers batches of rows with a replica's own code, without Serve.

Answers are in the order of the rows. A row that cannot be answered gets its error instead.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

from pydantic import ValidationError

from maas_ray.batch.plan import Fields
from maas_ray.batch.spec import PredictSpec
from maas_ray.data.reading import Raw
from maas_ray.errors import RequestError
from maas_ray.registry.bundle import Bundle
from maas_ray.serve.api.validation import request_error
from maas_ray.serve.caller import ANONYMOUS
from maas_ray.serve.resources import Resources
from maas_ray.serve.spec import ServingOptions
from maas_ray.tasks import AnswerRow, RequestRow, Task

Answered = AnswerRow | Exception
"""A row's answer, or the error that prevented it."""


class Model(Protocol):
    """A loaded model."""

    task: Task

    def answer(self, rows: Iterator[list[RequestRow | Exception]]) -> Iterator[list[Answered]]:
        """Batches of answers for batches of requests. An exception among the requests is passed on in its position."""

    def close(self) -> None:
        """Release the model's resources."""


def load(bundle: Bundle, spec: PredictSpec) -> Model:
    """The loaded model of a bundle; this takes as long as a replica's start."""
    directory = bundle.fetch()
    task = bundle.load_task(directory)
    options = ServingOptions(
        resources=Resources(cpus=spec.cpus_per_worker, gpus=spec.gpus_per_worker),
        engine=spec.engine,
        compression=spec.compression,
        max_ongoing_requests=spec.batch_size,
    )
    options.check_kind(task.kind)
    return Generating(bundle, task, options) if task.kind == "generate" else Predicting(bundle, task, options)


class Predicting:
    """A model that predicts: the next batch is prepared while one is computed."""

    def __init__(self, bundle: Bundle, task: Task, options: ServingOptions) -> None:
        from maas_ray.serve.engines import network

        self.task, self._answers = task, network.answers
        self._network, self.engine = network.load(task, bundle.fetch(), options)

    def answer(self, rows: Iterator[list[RequestRow | Exception]]) -> Iterator[list[Answered]]:
        with ThreadPoolExecutor(1) as thread:
            pending = thread.submit(self._next, rows)
            while (batch := pending.result()) is not None:
                pending = thread.submit(self._next, rows)
                inputs = [row for row in batch if not isinstance(row, Exception)]
                outputs = iter(self._answers(self.task, self._network, inputs) if inputs else [])
                yield [self._answer(row if isinstance(row, Exception) else next(outputs)) for row in batch]

    def close(self) -> None:
        del self._network

    def _next(self, rows: Iterator[list[RequestRow | Exception]]) -> list[dict[str, Any] | Exception] | None:
        batch = next(rows, None)
        return None if batch is None else [self._inputs(row) for row in batch]

    def _inputs(self, row: RequestRow | Exception) -> dict[str, Any] | Exception:
        try:
            return row if isinstance(row, Exception) else self.task.to_inputs(row)
        except (RequestError, ValueError) as error:
            return error

    def _answer(self, outputs: dict[str, Any] | Exception) -> Answered:
        if not isinstance(outputs, Exception):
            return self.task.to_answer(outputs)
        if not isinstance(outputs, ValueError):  # RequestError is one
            raise outputs  # out of memory, or a failed device: the row is not at fault, and a retry may answer it
        return outputs


class Generating:
    """A model that generates: the rows of a batch are in flight together, and each ends on its own."""

    def __init__(self, bundle: Bundle, task: Task, options: ServingOptions) -> None:
        from maas_ray.serve.model_app import Generator

        self.task = task
        self._loop = asyncio.Runner()
        self._most = options.max_ongoing_requests
        self._generator = Generator.__new__(Generator)
        # Serve awaits it too.
        self._loop.run(self._generator.__init__(bundle.uri, bundle.digest, "predict", "0", options))  # type: ignore[misc]
        self.engine = self._generator.engine()

    def answer(self, rows: Iterator[list[RequestRow | Exception]]) -> Iterator[list[Answered]]:
        # Several batches run at once, so that the engine need not wait for the longest answer of each.
        while window := list(islice(rows, 8)):
            flat = iter(self._loop.run(self._all([row for batch in window for row in batch])))
            for batch in window:
                yield list(islice(flat, len(batch)))

    def close(self) -> None:
        self._generator.close()
        self._loop.close()

    async def _all(self, rows: Sequence[RequestRow | Exception]) -> list[Answered]:
        room = asyncio.Semaphore(self._most)

        async def one(row: RequestRow | Exception) -> Answered:
            if isinstance(row, Exception):
                return row
            async with room:
                return await self._one(row)

        return list(await asyncio.gather(*map(one, rows)))

    async def _one(self, row: Any) -> Answered:
        from maas_ray.serve.replicas.text_rows import text_request

        deltas = await self._generator.complete(text_request(row), ANONYMOUS)
        return deltas if isinstance(deltas, RequestError) else self.task.to_answer({"text": deltas[0].text})


def request_of(task: Task, fields: Fields, parameters: dict[str, Any], raw: Raw) -> RequestRow | Exception:
    """The request of a row as it was read, or the error in it."""
    if raw.row is None:
        return ValueError(raw.error)
    try:
        values = parameters | fields.request(raw.row)
        if "seed" in task.request.model_fields and values.get("seed") is None:
            # With a seed of its own, a row gets the same answer again after a crash.
            digest = hashlib.sha256(f"{raw.path}\0{raw.position}".encode(errors="replace")).digest()
            values["seed"] = int.from_bytes(digest[:4])
        return task.request.model_validate(values, strict=None if fields.strict else False)
    except ValidationError as error:
        return request_error(error)
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}")
    except ValueError as error:
        return error
