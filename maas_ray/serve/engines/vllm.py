"""vLLM on GPUs, through Ray Serve's own integration of it (`ray.serve.llm`).

Ray's `LLMConfig` validates vLLM's arguments, and its `VLLMEngine` starts vLLM in the replica's placement group, with
one worker for each GPU. It generates tokens, not chats, so prompts, stop strings and answers are handled as for every
other engine. A replica's GPUs are in one machine, which has the bundle. vLLM is imported only there.
"""

import asyncio
import importlib.util
import itertools
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from maas_ray.errors import DeploymentError, RequestRefusedError
from maas_ray.ray_private.llm import client_of, vllm_engine
from maas_ray.serve.engines import parameters
from maas_ray.serve.spec import ServingOptions
from maas_ray.serve.text.types import Adapter, GenerateRequest, Tokens

if TYPE_CHECKING:
    from ray.serve.llm import LLMConfig

_START_SECONDS = 3600
_Options = TypeVar("_Options", bound=ServingOptions)


def installed() -> bool:
    """True if this environment has vLLM. A directory of that name does not count."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def chosen(options: _Options, task: str) -> _Options:
    """The options, with `engine: auto` replaced by vLLM if that is the engine for a task in this environment."""
    gpus = options.resources.gpus
    takes = task == "text-generation" and options.engine == "auto" and gpus >= 1 and gpus.is_integer()
    return options.model_copy(update={"engine": "vllm"}) if takes and installed() else options


def placement(options: ServingOptions, kind: str) -> dict[str, Any]:
    """Serve's options for the resources of a replica.

    vLLM gets a placement bundle with a GPU for each of its workers; the replica itself is in the first one.
    """
    if options.engine != "vllm" or kind != "generate":
        return {"ray_actor_options": options.resources.actor_options()}
    replica = options.resources.actor_options() | {"num_gpus": 0}
    # The bundles choose the node. The replica would need the type and the labels again.
    type_, labels = replica.pop("accelerator_type", None), replica.pop("label_selector", None)
    gpu = {"GPU": 1} | ({f"accelerator_type:{type_}": 0.001} if type_ else {})
    bundles: list[dict[str, float]] = [dict(gpu) for _ in range(int(options.resources.gpus))]
    bundles[0] |= {"CPU": replica["num_cpus"]} | ({"memory": replica["memory"]} if "memory" in replica else {})
    return {
        "ray_actor_options": replica,
        "placement_group_bundles": bundles,
        "placement_group_strategy": "STRICT_PACK",
        **({"placement_group_bundle_label_selector": [labels] * len(bundles)} if labels else {}),
    }


def engine_arguments(options: ServingOptions) -> dict[str, Any]:
    """Arguments for vLLM: the user's own `vllm`, overridden by the other options and by safe values."""
    workers = max(1, int(options.resources.gpus))
    ours = {
        "tensor_parallel_size": workers // int(options.vllm.get("pipeline_parallel_size", 1)),
        "max_num_seqs": options.max_ongoing_requests,
        "load_format": "safetensors",
        "trust_remote_code": False,
        **({"max_loras": options.max_adapters} if options.vllm.get("enable_lora") else {}),
    }
    return {**options.vllm, **ours}


def config_fields(directory: Path, name: str, options: ServingOptions, device: Literal["gpu", "cpu"]) -> dict[str, Any]:
    """The fields of Ray's `LLMConfig`; arguments as for `llm_config`."""
    return {
        "model_loading_config": {"model_id": name, "model_source": str(directory)},
        "engine_kwargs": engine_arguments(options),
        "accelerator_config": {"kind": device},
        "placement_group_config": {"bundle_per_worker": {device.upper(): 1}, "strategy": "STRICT_PACK"},
    }


def llm_config(
    directory: Path, name: str, options: ServingOptions, device: Literal["gpu", "cpu"] = "gpu"
) -> "LLMConfig":
    """Ray's description of the engine.

    Args:
        directory: the bundle's files.
        name: the model's name inside vLLM.
        options: how to work.
        device: `cpu` is for trials without a GPU.

    Raises:
        DeploymentError: vLLM is not installed here, or does not accept the arguments.
    """
    try:
        from ray.serve.llm import LLMConfig
    except ImportError as error:
        raise DeploymentError(
            f"engine: vllm needs vLLM on the replica's node ({_first_line(error)}). Install it there (`pip install "
            "'maas-ray[vllm]'`), or set engine: transformers.",
            code="engine_unavailable",
        ) from error
    try:
        config = LLMConfig(**config_fields(directory, name, options, device))
        config.get_engine_config()
    except ValueError as error:
        message = " ".join(str(error).split())  # pydantic's messages have several lines
        raise DeploymentError(f"vllm: {message}", code="engine_arguments") from error
    return config


class VllmEngine:
    """vLLM's engine, to be used from the event loop that started it.

    Args:
        config: see `llm_config`.
        fetch: returns an adapter's files on this node.
    """

    supports = parameters.VLLM

    def __init__(self, config: "LLMConfig", fetch: Callable[[Adapter], Path]) -> None:
        self._engine, self._fetch = vllm_engine(config), fetch
        self._takes_adapters = bool(config.engine_kwargs.get("enable_lora"))
        self._client: Any = None
        self._numbers = itertools.count(1)
        self._adapters: dict[str, Any] = {}

    @classmethod
    def started(
        cls, config: "LLMConfig", fetch: Callable[[Adapter], Path], loop: asyncio.AbstractEventLoop
    ) -> "VllmEngine":
        """The engine, once it has loaded. To be called from another thread than the event loop's.

        Raises:
            DeploymentError: vLLM does not start.
        """
        engine = cls(config, fetch)
        try:
            asyncio.run_coroutine_threadsafe(engine._start(), loop).result(_START_SECONDS)
        except Exception as error:
            raise DeploymentError(f"vLLM does not start: {_first_line(error)}.", code="model_load_failed") from error
        return engine

    @property
    def context(self) -> int:
        """Longest sequence that it accepts, tokens."""
        return int(self._client.model_config.max_model_len)

    async def _start(self) -> None:
        await self._engine.start()
        self._client = client_of(self._engine)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.check()
        try:
            sampling = SamplingParams(
                max_tokens=request.max_tokens,
                **parameters.for_vllm(request),
                stop_token_ids=list(request.end_ids),
                ignore_eos=True,  # `end_ids` has every token that ends an answer
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
        except ValueError as error:
            raise RequestRefusedError(_first_line(error)) from error
        adapter = await self._adapter(request.adapter) if request.adapter else None
        outputs = self._client.generate(
            {"prompt_token_ids": request.prompt_ids},
            sampling,
            f"request-{next(self._numbers)}",
            lora_request=adapter,
        )
        try:
            async for output in outputs:
                if tokens := list(output.outputs[0].token_ids):
                    yield Tokens(tokens)
        except ValueError as error:  # vLLM's for a request that it does not accept
            raise RequestRefusedError(_first_line(error)) from error
        except Exception as error:
            raise DeploymentError(f"the text engine failed: {_first_line(error)}.", code="engine_failed") from error
        finally:
            await outputs.aclose()  # which ends the request in the engine

    def check(self) -> None:
        if self._client.errored:
            raise DeploymentError(
                f"the text engine has stopped: {_first_line(self._client.dead_error)}.", code="engine_stopped"
            )

    def close(self) -> None:
        if self._client is not None:
            self._client.shutdown()

    async def _adapter(self, adapter: Adapter) -> Any:
        """An adapter in vLLM's terms. vLLM itself keeps the most recently used adapters loaded."""
        from vllm.lora.request import LoRARequest

        if not self._takes_adapters:
            raise DeploymentError(
                "vLLM was started without adapters. Deploy with vllm.enable_lora: true.", code="adapters_not_enabled"
            )
        if adapter.digest not in self._adapters:
            files = await asyncio.to_thread(self._fetch, adapter)
            if adapter.digest not in self._adapters:  # another request may have fetched it meanwhile
                number = len(self._adapters) + 1
                self._adapters[adapter.digest] = LoRARequest(adapter.digest, number, str(files))
        return self._adapters[adapter.digest]


def end_ids(directory: Path) -> tuple[int, ...]:
    """The tokens that end an answer, according to the model's files."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        ends = document.get("eos_token_id")
        if ends is not None:
            return (ends,) if isinstance(ends, int) else tuple(ends)
    return ()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
