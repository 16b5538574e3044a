"""A loaded version, which answers through its task; and the Serve application of replicas that hold one version each.

A replica is a `Generator` or a `Predictor`; a shared replica (`shared`) holds several of them. Gateways call them over
handles, and clients may call them on their direct path (`replicas.direct`). Their methods return a client's error
instead of raising it: Serve takes every exception for a failure of the replica, and logs a traceback. Serve reads
the type of `build`'s argument from its annotation, so this module must not turn annotations into strings.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from ray import serve
from ray.serve import Application

from maas_ray.errors import DeploymentError, RequestError
from maas_ray.registry.bundle import open_bundle
from maas_ray.registry.versions import Registry
from maas_ray.serve.api.middleware import App
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody, parse_infer, render_infer
from maas_ray.serve.api.open_inference.values import numpy_dtype
from maas_ray.serve.api.predict import Head, PredictBody, parse_rows
from maas_ray.serve.api.refusals import BACKPRESSURE
from maas_ray.serve.autoscaling import ROWS, autoscaling, first_replicas
from maas_ray.serve.caller import Caller
from maas_ray.serve.engines import network
from maas_ray.serve.engines.vllm import chosen, placement
from maas_ray.serve.replicas.batching import Batcher
from maas_ray.serve.replicas.direct import SingleModel, create_single_app
from maas_ray.serve.replicas.text_rows import TextRows
from maas_ray.serve.resolve import make_route
from maas_ray.serve.routes import Route
from maas_ray.serve.spec import ModelArgs, ServingOptions
from maas_ray.serve.text.codec import TextCodec
from maas_ray.serve.text.streaming import StreamedAnswer, merge_answers, stream_answer
from maas_ray.serve.text.types import Delta, TextRequest
from maas_ray.serve.upstreams import RELAY
from maas_ray.settings import Settings
from maas_ray.storage.disk_cache import Held
from maas_ray.tasks import Task
from maas_ray.tasks.text.generation import TextGeneration

_log = logging.getLogger("ray.serve")
_LONG_PROMPT = 4_000  # characters; longer prompts are tokenised in a thread
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Variables of a replica that generates. It keeps no event loop busy, and by default Serve hands each piece of a stream
from one loop to another, which costs more than all that is done with it before. Its streams also wait for clients that
read slowly, instead of growing in memory."""


def _fetch(uri: str, digest: str) -> tuple[Task, Held]:
    """The task and the files of a bundle on this node, each byte verified."""
    bundle = open_bundle(uri)
    if bundle.digest != digest:
        raise DeploymentError(
            f"the bundle at {uri} has digest {bundle.digest}, not {digest} as when it was deployed. Deploy it again.",
            code="digest_mismatch",
        )
    files = bundle.hold()
    return bundle.load_task(files.path), files


class _Model:
    """A bundle on a replica, with its network on the replica's device.

    Args:
        uri, digest: the bundle, and the digest that it must have.
        name: public model name.
        number: the version's number.
        options: how to work.
    """

    def __init__(self, uri: str, digest: str, name: str, number: str, options: ServingOptions) -> None:
        self.task, self.files = _fetch(uri, digest)
        self.network, self.engine = network.load(self.task, self.files.path, options)
        self.head, self.options = Head(model=name, version=number), options


class Generator:
    """A replica that answers token by token. Its arguments are those of `_Model`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self, uri: str, digest: str, name: str, number: str, options: ServingOptions
    ) -> None:
        from maas_ray.serve.engines.start import start, warm_up

        self.in_progress = 0  # sequences
        self._phases = {"replica": time.time()}
        task, self._files = await asyncio.to_thread(_fetch, uri, digest)
        self._phases["bundle"] = time.time()
        cache = Path(Settings.from_environment(strict=False).home) / "openvino"
        loop = asyncio.get_running_loop()
        started = await asyncio.to_thread(start, task, self._files.path, digest, options, cache=cache, loop=loop)
        self._engine, self._name = started.engine, started.name
        self._phases["engine"] = time.time()
        self._codec = TextCodec(
            cast(TextGeneration, task), started.context, started.end_ids, self._engine.supports, options.tool_calls
        )
        head = Head(model=name, version=number)
        self._rows = TextRows(self._codec.task, self.generate, head, options.max_ongoing_requests)
        await warm_up(self._engine, self._codec.task.end_of_text_id)
        self._phases["warm"] = time.time()
        began, bundle, loaded, warm = self._phases.values()
        _log.info(
            "%s: the engine is %s; bundle %.2f s, engine %.2f s, first request %.2f s",
            *(name, self._name, bundle - began, loaded - bundle, warm - loaded),
        )

    def engine(self) -> str:
        """The name of the engine, for a person."""
        return self._name

    def phases(self) -> dict[str, float]:
        """Ends of the phases of the start, Unix seconds: `replica` (the start itself), `bundle`, `engine`, `warm`."""
        return self._phases

    async def generate(
        self, request: TextRequest, caller: Caller, *, streamed: bool = True
    ) -> AsyncGenerator[Delta | RequestError, None]:
        """The answers, piece by piece; a `RequestError` is the last item, and mostly the only one.

        Args:
            request: the request.
            caller: who calls.
            streamed: tool calls may come in pieces.
        """
        try:
            long = request.is_chat or request.more_prompts or len(request.prompt) > _LONG_PROMPT
            prepare = partial(self._codec.prepare, request)
            prepared = await asyncio.to_thread(prepare) if long else prepare()
        except RequestError as error:
            yield error
            return
        task, lead = self._codec.task, self._codec.lead(request)
        answers = []
        for index, part in enumerate(prepared):
            parser = self._codec.parser(request, part, streamed=streamed)
            answer = StreamedAnswer(task, part, request.stop, index, lead, parser)
            answers.append(stream_answer(self._engine.generate(part), answer))
        self.in_progress += len(answers)
        try:
            async with aclosing(answers[0] if len(answers) == 1 else merge_answers(answers)) as deltas:
                async for delta in deltas:
                    yield delta
        except RequestError as error:  # the engine refuses it
            yield error
        finally:
            self.in_progress -= len(answers)

    async def complete(self, request: TextRequest, caller: Caller) -> list[Delta] | RequestError:
        """The complete answers."""
        answers: dict[int, list[Delta]] = {}
        async with aclosing(self.generate(request, caller, streamed=False)) as deltas:
            async for delta in deltas:
                if isinstance(delta, RequestError):
                    return delta
                answers.setdefault(delta.index, []).append(delta)
        return [
            replace(
                pieces[-1],
                text="".join(piece.text for piece in pieces),
                logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
                reasoning="".join(piece.reasoning for piece in pieces),
                calls=tuple(call for piece in pieces for call in piece.calls),
            )
            for _, pieces in sorted(answers.items())
        ]

    async def infer(self, body: InferBody, caller: Caller) -> Answer[InferBody] | RequestError:
        """The answer to an Open Inference request."""
        try:
            return await self._rows.infer(body, caller)
        except RequestError as error:
            return error

    async def predict(self, body: PredictBody, caller: Caller) -> Answer[bytes] | RequestError:
        """The answer to rows in the task's own terms."""
        try:
            return await self._rows.predict(body, caller)
        except RequestError as error:
            return error

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        self._engine.check()

    def close(self) -> None:
        """Stop the engine, and free the model's memory."""
        self._engine.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


class Predictor:
    """A replica that answers a batch at a time; rows of all requests in flight share batches."""

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]  # Serve awaits the constructor
        self.in_progress = 0  # rows
        self._model = await asyncio.to_thread(_Model, *args)
        options = self._model.options
        self._batch = Batcher(self._answer, size=options.max_batch_size, wait_s=options.batch_wait_ms / 1000)
        # The examples warm the network up; a refusal would do too.
        for size in network.warm_up_sizes(self._model.engine):
            await asyncio.gather(*(self._batch(_example(self._model.task)) for _ in range(size)))

    def engine(self) -> str:
        """The name of the engine, for a person."""
        return self._model.engine

    async def infer(self, body: InferBody, caller: Caller) -> Answer[InferBody] | RequestError:
        """The answer to an Open Inference request."""
        task, head = self._model.task, self._model.head
        try:
            request = parse_infer(body, task.inputs, task.outputs)
            # A string taken from an array does not have a shape; `asarray` gives it one.
            rows = (
                {name: np.asarray(array[row], array.dtype) for name, array in request.inputs.items()}
                for row in range(request.rows)
            )
            answers = await self._answers(rows)
            outputs = {name: np.stack([answer[name] for answer in answers]) for name in request.outputs}
            rendered = render_infer(request, outputs, task.outputs, head.model, head.version)
            return Answer(rendered, Usage(rows=request.rows))
        except RequestError as error:
            return error

    async def predict(self, body: PredictBody, caller: Caller) -> Answer[bytes] | RequestError:
        """The answer to rows in the task's own terms."""
        model = self._model
        try:
            request = parse_rows(body, model.task)
            answers = await self._answers(await request.inputs(model.task))
            rendered = request.render([model.task.to_answer(answer) for answer in answers], model.head)
            return Answer(rendered, Usage(rows=len(request.rows)))
        except RequestError as error:
            return error

    async def _answers(self, rows: Iterable["_Row"]) -> list["_Row"]:
        """Answers in the order of the rows; the first error is raised."""
        answers, waiting = [], [self._batch(row) for row in rows]
        self.in_progress += len(waiting)
        try:
            for answer in await asyncio.gather(*waiting):
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        finally:
            self.in_progress -= len(waiting)
        return answers

    def check_health(self) -> None:
        """Nothing to check: no part of a predictor stops by itself."""

    def close(self) -> None:
        """Free the model's memory."""
        self._batch.close()
        del self._model

    def _answer(self, rows: list["_Row"]) -> list["_Row | Exception"]:
        """Answers in the order of the rows."""
        return network.answers(self._model.task, self._model.network, rows)


_Row = dict[str, Any]
"""One row of each tensor, by name."""


def _example(task: Task) -> _Row:
    """A row of zeros (or empty strings) in the shapes of a task's inputs."""
    return {
        tensor.name: np.full([max(size, 1) for size in tensor.shape[1:]], "", dtype=object)
        if tensor.datatype == "BYTES"
        else np.zeros([max(size, 1) for size in tensor.shape[1:]], dtype=numpy_dtype(tensor.datatype))
        for tensor in task.inputs
    }


class _Own:
    """A replica with one version. It also answers HTTP, if the endpoint is `direct`.

    Args:
        uri: the bundle.
        route: the route to the replica; names the digest that the bundle must have.
        options: how to work.
    """

    async def __init__(self, uri: str, route: Route, options: ServingOptions) -> None:  # type: ignore[misc]
        await super().__init__(uri, route.digest, route.name, route.number, options)  # type: ignore[call-arg,misc]
        self._single, self._secret = SingleModel(self, route), secrets.token_urlsafe()

    def __serve_build_asgi_app__(self) -> App:
        return create_single_app(self._single, self._secret)

    def record_replica_metadata(self) -> dict[str, str]:
        """Called by Serve, which gives the result to gateways."""
        return {RELAY: self._secret}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, see `autoscaling`."""
        return {ROWS: self.in_progress}  # type: ignore[attr-defined]

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply options of the route that do not need a new replica."""
        route = Route.model_validate(config["route"], extra="ignore")
        self._single.update(route, direct=config.get("direct", False), options=config.get("http"))


@serve.ingress()
class OwnGenerator(_Own, Generator):
    """A replica of one generating model."""


@serve.ingress()
class OwnPredictor(_Own, Predictor):
    """A replica of one predicting model."""


def application(
    options: ServingOptions,
    uri: str,
    route: Route,
    replicas: int | None,
    *,
    direct: bool = False,
    http: dict[str, Any] | None = None,
) -> Application:
    """The application for a bundle, as `route` describes it.

    Args:
        options: of the deployment.
        uri: the bundle.
        route: the route to the application.
        replicas: see `autoscaling`.
        direct: the endpoint's direct path leads to it.
        http: see `SingleModel.update`.
    """
    placed = placement(options, route.kind)
    if route.kind == "generate":
        placed["ray_actor_options"]["runtime_env"] = {"env_vars": _ONE_LOOP}
    deployment = serve.deployment(
        name="Model",
        **placed,
        autoscaling_config=autoscaling(options.scaling, options.max_ongoing_requests, replicas),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        backpressure_config=BACKPRESSURE,
        user_config={"route": route.model_dump(mode="json"), "direct": direct, "http": http},
        max_constructor_retry_count=2,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=options.request_timeout_s,
    )(OwnGenerator if route.kind == "generate" else OwnPredictor)
    serving = ServingOptions.model_validate(options.model_dump(include=set(ServingOptions.model_fields)))
    return deployment.bind(uri, route, serving)


def build(args: ModelArgs) -> Application:
    """The application of a version, for a Serve config file: the version is resolved now."""
    version = Registry(Settings.from_environment(strict=False)).resolve(args.version)
    args = chosen(args, version.task)
    route = make_route(version, endpoint=args.endpoint, application="", timeout_s=args.request_timeout_s)
    return application(args, version.uri, route, first_replicas(args.scaling))
