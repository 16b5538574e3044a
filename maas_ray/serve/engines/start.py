"""The choice and the start of a bundle's engine on a replica. Knows nothing of Serve.

Transformers is imported only when its engine is chosen.
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maas_ray.errors import DeploymentError
from maas_ray.registry.bundle import open_bundle
from maas_ray.serve.engines import Engine
from maas_ray.serve.engines.adapters import AdapterEngine
from maas_ray.serve.engines.restarting import RestartingEngine
from maas_ray.serve.spec import ServingOptions
from maas_ray.serve.text.types import Adapter, GenerateRequest, SamplingParams
from maas_ray.storage.disk_cache import Held

if TYPE_CHECKING:
    from maas_ray.tasks import Task

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Started:
    """A running engine.

    Args:
        engine: the engine.
        name: its name, for a person; and if another engine was preferred, why that was not chosen.
        context: longest sequence that it accepts, tokens.
        end_ids: tokens that end an answer, according to the model.
    """

    engine: Engine
    name: str
    context: int
    end_ids: tuple[int, ...]


def start(
    task: "Task",
    directory: Path,
    digest: str,
    options: ServingOptions,
    *,
    cache: Path,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Started:
    """Start a bundle's engine; returns when its model is loaded.

    Args:
        task: the bundle's task.
        directory: the bundle's files.
        digest: the bundle's digest.
        options: how to work.
        cache: directory of this node's converted models.
        loop: the event loop that will call the engine, running in another thread; needed by vLLM.

    Raises:
        DeploymentError: the engine does not start, or cannot serve this model with these options.
    """
    if options.engine == "vllm":
        assert loop is not None  # noqa: S101  replicas pass it
        return _vllm(directory, digest, options, loop)
    if options.engine == "transformers" or options.resources.gpus:
        name = "transformers" if options.engine == "transformers" else "transformers (vLLM is not installed)"
        return _transformers(task, directory, options, name)
    try:
        return _openvino(directory, digest, options, cache)
    except _UnconvertedError as reason:
        if options.engine == "openvino" or options.compression != "none":
            option = "engine: openvino" if options.engine == "openvino" else f"compression: {options.compression}"
            raise DeploymentError(
                f"{option} is not available for this model: {reason}. Leave it out, or serve another model.",
                code="engine_unavailable",
            ) from reason
        _log.warning("this model is served by the slower engine of Transformers: %s", reason)
        return _transformers(task, directory, options, f"transformers ({reason})")


class _UnconvertedError(Exception):
    """A model was not converted; the message is the reason."""


def _openvino(directory: Path, digest: str, options: ServingOptions, cache: Path) -> Started:
    from maas_ray.serve.engines.openvino import conversion
    from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
    from maas_ray.serve.engines.openvino.grammars import GrammarEngine

    if reason := conversion.refusal(directory):
        raise _UnconvertedError(reason)
    threads = options.threads
    try:
        model = conversion.converted(directory, digest, options.compression, cache=cache, threads=threads)
    except DeploymentError as error:
        raise _UnconvertedError(str(error).removesuffix(".")) from error

    limits: Any = {"threads": threads, **_limits(options)}

    def load(adapter: Adapter) -> Engine:
        if options.compression != "none":
            raise DeploymentError(
                f"compression: {options.compression} leaves no weights that adapters fit. Leave out one of them.",
                code="adapter_on_compressed_model",
            )
        files = _fetched(adapter)
        return RestartingEngine(lambda: OpenVinoEngine(model, **limits, adapter=files.path))

    base = RestartingEngine(lambda: OpenVinoEngine(model, **limits))
    engine: Engine = AdapterEngine(base, load, options.max_adapters)
    if model.spells_tokens:
        engine = GrammarEngine(engine, model.directory)
    name = "openvino" if model.compression == "none" else f"openvino {model.compression}"
    if model.compression != options.compression:
        name += f" (no layer suits {options.compression})"
    return Started(engine, name, model.context, model.end_ids)


def _vllm(directory: Path, digest: str, options: ServingOptions, loop: asyncio.AbstractEventLoop) -> Started:
    from maas_ray.serve.engines.vllm import VllmEngine, end_ids, llm_config

    def fetch(adapter: Adapter) -> Path:
        return _fetched(adapter).for_ever()

    engine = VllmEngine.started(llm_config(directory, digest[:12], options), fetch, loop)
    return Started(engine, "vllm", engine.context, end_ids(directory))


def _transformers(task: "Task", directory: Path, options: ServingOptions, name: str) -> Started:
    import torch

    from maas_ray.serve.engines.lora import Lora
    from maas_ray.serve.engines.transformers import TransformersEngine, quiet

    quiet()
    torch.set_num_threads(options.threads)
    device = "cuda" if options.resources.gpus else "cpu"

    def load(adapter: Adapter) -> Engine:
        files = _fetched(adapter)
        network: Any = task.load_model(directory)
        Lora.load(files.path).merge(network, files.path)
        network = network.to(device)
        return RestartingEngine(lambda: TransformersEngine(network, context=context, **_limits(options)))

    network: Any = task.load_model(directory).to(device)
    context = int(network.config.get_text_config().max_position_embeddings)
    ends = network.generation_config.eos_token_id
    base = RestartingEngine(lambda: TransformersEngine(network, context=context, **_limits(options)))
    engine = AdapterEngine(base, load, options.max_adapters)
    return Started(engine, name, context, () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends))


def _fetched(adapter: Adapter) -> Held:
    """An adapter's files on this node, each byte verified. They stay while its engine may start from them."""
    bundle = open_bundle(adapter.uri)
    if bundle.digest != adapter.digest:
        raise DeploymentError(
            f"the adapter at {adapter.uri} has digest {bundle.digest}, not {adapter.digest} as when it was deployed. "
            "Deploy it again.",
            code="digest_mismatch",
        )
    return bundle.hold()


def _limits(options: ServingOptions) -> dict[str, int]:
    """The arguments that every engine gets from a replica's options."""
    return {
        "max_requests": options.max_ongoing_requests,
        "kv_cache_bytes": int(options.kv_cache_gb * 1e9),
        "prefill_tokens": options.prefill_tokens,
    }


async def warm_up(engine: Engine, token: int) -> None:
    """Run one short request, so that everything is loaded before the first real one."""
    request = GenerateRequest([token] * 2, max_tokens=2, seed=0, end_ids=(), sampling=SamplingParams(top_p=0.9))
    async with aclosing(engine.generate(request)) as tokens:
        async for _ in tokens:
            pass
