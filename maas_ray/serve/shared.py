"""Shared replicas, which serve every endpoint with `replicas: shared`, and are warm before the first request.

A request names its model by Serve's multiplexed model id, which contains all that a replica needs to load the model
(`SharedModel`). A replica caches the most recently used models (`replicas.cache`) and reports them to Serve, so that
requests reach a replica that has their model. Only the routing of `@serve.multiplexed` is used: its cache counts models
instead of bytes, evicts models in use, loads one at a time, and retries a failing model for every request. Serve reads
the type of `build`'s argument from its annotation, so this module must not turn annotations into strings.
"""

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import lru_cache
from typing import Any

from ray import serve
from ray.serve import Application

from maas_ray.errors import DeploymentError, OverloadedError, RequestError
from maas_ray.ray_private.serve import report_models
from maas_ray.serve.api import refusals
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.api.predict import PredictBody
from maas_ray.serve.autoscaling import ROWS, autoscaling, first_replicas
from maas_ray.serve.caller import Caller
from maas_ray.serve.engines.openvino import engine as openvino
from maas_ray.serve.model_app import Generator, Predictor
from maas_ray.serve.replicas.cache import ModelCache
from maas_ray.serve.spec import SHARED_DEPLOYMENT, ServingOptions, SharedArgs, SharedModel
from maas_ray.serve.text.types import Delta, TextRequest

_log = logging.getLogger("ray.serve")
_WARM = ("torch", "tokenizers")
_REPORT_S = 0.1  # changes within this time are reported to Serve together


class Shared:
    """A shared replica."""

    def __init__(self, args: SharedArgs) -> None:
        for module in _WARM:
            importlib.import_module(module)
        self._args, self._reporting = args, False
        self._models: ModelCache[Generator | Predictor] = ModelCache(
            self._load, max_models=args.max_models, max_bytes=args.weights_gb * 1e9, changed=self._changed
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, see `autoscaling`."""
        return {ROWS: sum(model.in_progress for model in self._models.loaded())}

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Apply the options that do not need a new replica."""
        args = SharedArgs.parse(config)
        self._models.limit(max_models=args.max_models, max_bytes=args.weights_gb * 1e9)

    async def engine(self) -> str:
        """The name of the model's engine, for a person. Loads the model now, if necessary.

        Raises:
            DeploymentError: the model cannot be loaded; gives the reason.
        """
        async with self._use(retry=True) as model:
            return model.engine()

    async def phases(self) -> dict[str, float]:
        """See `Generator.phases`."""
        async with self._use() as model:
            return model.phases() if isinstance(model, Generator) else {}

    async def generate(self, request: TextRequest, caller: Caller) -> AsyncGenerator[Delta | RequestError, None]:
        """See `Generator.generate`."""
        async with AsyncExitStack() as stack:
            model = await self._model(stack)
            if isinstance(model, RequestError):
                yield model
                return
            async for delta in await stack.enter_async_context(aclosing(model.generate(request, caller))):
                yield delta

    async def complete(self, request: TextRequest, caller: Caller) -> Any:
        """See `Generator.complete`."""
        return await self._call("complete", request, caller)

    async def infer(self, body: InferBody, caller: Caller) -> Any:
        """See `Predictor.infer`."""
        return await self._call("infer", body, caller)

    async def predict(self, body: PredictBody, caller: Caller) -> Any:
        """See `Predictor.predict`."""
        return await self._call("predict", body, caller)

    async def _call(self, method: str, argument: Any, caller: Caller) -> Any:
        async with AsyncExitStack() as stack:
            model = await self._model(stack)
            return model if isinstance(model, RequestError) else await getattr(model, method)(argument, caller)

    async def _model(self, stack: AsyncExitStack) -> Any:
        """The model of this request, in use until the stack ends; or the error that answers the request."""
        try:
            return await stack.enter_async_context(self._use())
        except OverloadedError as error:
            return error
        except DeploymentError:
            name = _parse(serve.get_multiplexed_model_id()).name
            return refusals.unavailable(name, "it could not be loaded; the cause is in the server's log")

    def _use(self, *, retry: bool = False) -> AbstractAsyncContextManager[Generator | Predictor]:
        key = serve.get_multiplexed_model_id()
        model = _parse(key)
        max_users = model.options.max_ongoing_requests + model.options.max_queued_requests
        return self._models.use(key, model.weights, max_users=max_users, retry=retry)

    async def _load(self, key: str) -> Generator | Predictor:
        model, began = _parse(key), time.monotonic()
        try:
            options = ServingOptions.parse(model.options.document() | {"resources": self._args.resources.document()})
            kind: type[Generator] | type[Predictor] = Generator if model.kind == "generate" else Predictor
            loaded = kind.__new__(kind)
            # Serve itself creates objects with an asynchronous constructor in this way.
            await loaded.__init__(model.uri, model.digest, model.name, model.number, options)  # type: ignore[misc]
        except Exception:
            _log.exception("%s, version %s, could not be loaded", model.name, model.number)
            raise
        if isinstance(loaded, Generator) and loaded.engine().startswith("openvino"):
            # After one generating model, another is likely. The spare process takes 40 MB, so it is not started before.
            await asyncio.to_thread(openvino.prepare)
        _log.info("%s, version %s, loaded in %.3f s", model.name, model.number, time.monotonic() - began)
        return loaded

    def _changed(self) -> None:
        if not self._reporting:
            self._reporting = True
            asyncio.get_running_loop().call_later(_REPORT_S, self._report)

    def _report(self) -> None:
        self._reporting = False
        report_models(self._models.keys())

    def __del__(self) -> None:
        if hasattr(self, "_models"):
            self._models.close()


@lru_cache(1024)
def _parse(key: str) -> SharedModel:
    return SharedModel.model_validate_json(key)


def application(args: SharedArgs, replicas: int | None) -> Application:
    """The application of all shared replicas. `replicas`: see `autoscaling`."""
    deployment = serve.deployment(
        name=SHARED_DEPLOYMENT,
        ray_actor_options=args.resources.actor_options(),
        autoscaling_config=autoscaling(args.scaling, args.max_ongoing_requests, replicas),
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        max_constructor_retry_count=2,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=args.request_timeout_s,
        user_config=args.document(),
    )(Shared)
    return deployment.bind(args)


def build(args: SharedArgs) -> Application:
    """The application, for a Serve config file."""
    return application(args, first_replicas(args.scaling))
