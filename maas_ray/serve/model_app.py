"""One Serve application per served version: a replica loads the bundle and answers through its task.

It has no route of its own; gateways call it by handle. Its methods return a client's error instead of
raising it: for Serve whatever is raised is a failure of the replica, and it logs a traceback. Serve takes
the type of `build`'s argument from its annotation, so this module must not turn annotations into strings.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from ray import serve
from ray.serve import Application

from maas_ray.errors import RequestError
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.growing import Growing, grow, together
from maas_ray.serve.open_inference import InferBody, numpy_dtype, parse_infer, render_infer
from maas_ray.serve.routes import Route, make_route
from maas_ray.serve.spec import ModelArgs, ServingOptions
from maas_ray.serve.text import Delta, TextCodec, TextRequest
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from maas_ray.tasks.text_generation import TextGeneration

_log = logging.getLogger("ray.serve")
_LONG_PROMPT = 20_000  # characters; longer ones are tokenised beside the event loop


def _fetch(uri: str, digest: str) -> tuple[Task, Path]:
    """A bundle on this node, each byte verified: its task, and its files."""
    bundle = open_bundle(uri)
    if bundle.digest != digest:
        raise ValueError(f"the bundle at {uri} has digest {bundle.digest}, not {digest} as when it was deployed.")
    directory = bundle.fetch()
    return bundle.load_task(directory), directory


class _Model:
    """A bundle on a replica, its network on the replica's device.

    Args:
        uri, digest: the bundle, and what it must hold.
        name: public model name.
        number: the version's number.
        options: how to work.
    """

    def __init__(self, uri: str, digest: str, name: str, number: str, options: ServingOptions) -> None:
        import torch

        torch.set_num_threads(options.threads)
        self.task, directory = _fetch(uri, digest)
        self.network = self.task.load_model(directory).to("cuda" if options.resources.gpus else "cpu")
        self.name, self.number, self.options = name, number, options


class Generator:
    """A replica that answers token by token. Its arguments are those of `_Model`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, uri: str, digest: str, name: str, number: str, options: ServingOptions
    ) -> None:
        from maas_ray.serve.engines.start import start, warm_up

        task, directory = _fetch(uri, digest)
        cache = Path(Settings.from_environment().home) / "openvino"
        started = await asyncio.to_thread(start, task, directory, digest, options, cache=cache)
        self._engine, self._name = started.engine, started.name
        self._codec = TextCodec(
            cast(TextGeneration, task), directory, started.context, started.end_ids, self._engine.abilities
        )
        await warm_up(self._engine, self._codec.task.end_of_text_id)
        _log.info("%s: the engine is %s", name, self._name)

    def engine(self) -> str:
        """Which engine generates, for a person."""
        return self._name

    async def generate(self, request: TextRequest) -> AsyncGenerator[Delta | RequestError, None]:
        """The answers as they grow; a `RequestError` is the first and only item."""
        try:
            long = request.is_chat or request.more_prompts or len(request.prompt) > _LONG_PROMPT
            prepare = partial(self._codec.prepare, request)
            prepared = await asyncio.to_thread(prepare) if long else prepare()
        except RequestError as error:
            yield error
            return
        tokenizer = self._codec.task.tokenizer
        answers = [
            grow(self._engine, asked, Growing(tokenizer, asked, request.stop, index))
            for index, asked in enumerate(prepared)
        ]
        async with aclosing(answers[0] if len(answers) == 1 else together(answers)) as deltas:
            async for delta in deltas:
                yield delta

    async def complete(self, request: TextRequest) -> list[Delta] | RequestError:
        """The whole answers."""
        pieces: dict[int, list[Delta]] = {}
        async with aclosing(self.generate(request)) as deltas:
            async for delta in deltas:
                if isinstance(delta, RequestError):
                    return delta
                pieces.setdefault(delta.index, []).append(delta)
        return [
            replace(
                found[-1],
                text="".join(piece.text for piece in found),
                logprobs=tuple(one for piece in found for one in piece.logprobs),
            )
            for _, found in sorted(pieces.items())
        ]

    def check_health(self) -> None:
        """Serve asks; what is raised makes it replace the replica."""
        self._engine.check()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class Predictor:
    """A replica that answers a batch at a time; rows of all requests in flight share batches."""

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._model = _Model(*args)
        self._batch.set_max_batch_size(self._model.options.max_batch_size)
        self._batch.set_batch_wait_timeout_s(self._model.options.batch_wait_ms / 1000)
        # One thread computes, so that the event loop gathers the next batch meanwhile.
        self._thread = ThreadPoolExecutor(1)
        await self._batch(_example(self._model.task))  # warm; an example may well be one to refuse

    async def infer(self, body: InferBody) -> InferBody | RequestError:
        """An Open Inference request to its answer."""
        task = self._model.task
        try:
            request = parse_infer(body, task.inputs, task.outputs)
        except RequestError as error:
            return error
        rows = ({name: array[row] for name, array in request.inputs.items()} for row in range(request.rows))
        answers: list[_Row] = []
        for answer in await asyncio.gather(*map(self._batch, rows)):
            if isinstance(answer, RequestError):
                return answer
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        outputs = {name: np.stack([answer[name] for answer in answers]) for name in request.outputs}
        try:
            return render_infer(request, outputs, task.outputs, self._model.name, self._model.number)
        except RequestError as error:
            return error

    @serve.batch  # type: ignore[untyped-decorator]
    async def _batch(self, rows: list["_Row"]) -> list["_Row | Exception"]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answer, rows)

    def _answer(self, rows: list["_Row"]) -> list["_Row | Exception"]:
        """Answers in the order of the rows; rows of one shape are computed together."""
        answers: list[_Row | Exception] = [{}] * len(rows)
        alike: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(tuple((name, value.shape) for name, value in row.items()), []).append(place)
        for places in alike.values():
            for place, answer in zip(places, self._together([rows[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _together(self, rows: list["_Row"]) -> list["_Row | Exception"]:
        try:
            answer = self._model.task.predict(
                self._model.network, {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            )
        except Exception as error:
            # One row must not fail its neighbours: each is tried alone.
            return [error] if len(rows) == 1 else [one for row in rows for one in self._together([row])]
        return [{name: array[row] for name, array in answer.items()} for row in range(len(rows))]


_Row = dict[str, Any]
"""One row of each tensor, by name."""


def _example(task: Task) -> _Row:
    """A row of zeros (or empty strings) of the shape a task takes."""
    return {
        tensor.name: np.full([max(size, 1) for size in tensor.shape[1:]], "", dtype=object)
        if tensor.datatype == "BYTES"
        else np.zeros([max(size, 1) for size in tensor.shape[1:]], dtype=numpy_dtype(tensor.datatype))
        for tensor in task.inputs
    }


def application(options: ServingOptions, version: ModelVersion, route: Route) -> Application:
    """The application for a version, as `route` describes it."""
    scaling = options.scaling
    deployment = serve.deployment(
        name="Model",
        ray_actor_options={"num_cpus": options.resources.cpus, "num_gpus": options.resources.gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            # One starts even where none is kept: a version that cannot load must not be routed to.
            "initial_replicas": max(1, scaling.min_replicas),
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        max_constructor_retry_count=2,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=options.request_timeout_s,
    )(Generator if route.kind == "generate" else Predictor)
    serving = ServingOptions.model_validate(options.model_dump(include=set(ServingOptions.model_fields)))
    return deployment.bind(version.uri, version.digest, route.name, route.number, serving)


def build(args: ModelArgs) -> Application:
    """The application of a version, for a Serve config file: the version is resolved now."""
    version = Registry(Settings.from_environment()).resolve(args.version)
    route = make_route(version, endpoint=args.endpoint, application="", timeout_s=args.request_timeout_s)
    return application(args, version, route)
