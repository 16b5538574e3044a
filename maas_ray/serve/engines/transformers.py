"""Transformers' continuous batching: any architecture, no conversion.

Its manager computes in a thread of its own, and passes results to the event loop with `call_soon_threadsafe`. It always
takes the highest score, and the processors in `engines.sampling` sample: Transformers' own sampling draws from one
generator for the whole batch, so single requests would be neither reproducible nor greedy.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Any

from maas_ray.errors import DeploymentError, RequestRefusedError
from maas_ray.serve.engines import parameters
from maas_ray.serve.engines.kv_cache import PAGE, pages
from maas_ray.serve.text.types import GenerateRequest, Tokens

_WATCH_S = 1.0


class TransformersEngine:
    """Continuous batching over a Transformers causal language model.

    Args:
        model: the model in eval mode, on its device.
        context: longest sequence that it accepts, tokens.
        max_requests: most requests in a batch.
        kv_cache_bytes: most memory for keys and values; at least one full sequence must fit.
        prefill_tokens: maximum number of prompt tokens in one step.

    Raises:
        DeploymentError: the key-value cache is too small for one sequence.
    """

    supports = parameters.TRANSFORMERS

    def __init__(
        self, model: Any, *, context: int, max_requests: int, kv_cache_bytes: int, prefill_tokens: int
    ) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        from maas_ray.serve.engines.sampling import sampling_processors

        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * heads * width * model.dtype.itemsize * config.num_hidden_layers
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=pages(token_bytes, context, max_requests, kv_cache_bytes),
                max_batch_tokens=max(prefill_tokens, max_requests),
                max_requests_per_batch=max_requests,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        self._manager.logit_processor = sampling_processors()
        self._ids = itertools.count()
        self._manager.start()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        self.check()
        name = f"request-{next(self._ids)}"
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._manager.register_result_handler(name, arrived.put_nowait)
        finished = False
        try:
            try:
                self._manager.add_request(
                    request.prompt_ids,
                    request_id=name,
                    max_new_tokens=request.max_tokens,
                    eos_token_id=list(request.end_ids),
                    streaming=True,
                    **parameters.for_transformers(request),
                )
            except ValueError as error:
                raise RequestRefusedError(str(error).rstrip(".")) from error
            seen = 0
            while not finished:
                output = await self._next(arrived)
                while not arrived.empty():  # each output has all tokens so far, so the last one suffices
                    output = arrived.get_nowait()
                finished = output.is_finished()
                if output.error is not None:
                    raise DeploymentError(f"the text engine failed: {output.error}.", code="engine_failed")
                if len(output.generated_tokens) > seen:
                    yield Tokens(output.generated_tokens[seen:])
                    seen = len(output.generated_tokens)
        finally:
            if not finished:
                self._manager.cancel_request(name)
                router = self._manager.output_router
                with router._lock:
                    router.result_handlers.pop(name, None)

    async def _next(self, arrived: "asyncio.Queue[Any]") -> Any:
        """The next output. Also notices an engine that died without an output."""
        while True:
            try:
                async with asyncio.timeout(_WATCH_S):
                    return await arrived.get()
            except TimeoutError:
                self.check()

    def check(self) -> None:
        status = self._manager.background_thread_status
        if status.can_accept_new_requests() is not None or not self._manager.is_running():
            raise DeploymentError(
                f"the text engine has stopped: {status.fatal_error or 'its thread has ended'}.", code="engine_stopped"
            )

    def close(self) -> None:
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=10, hard_stop=True)


def quiet() -> None:
    """Disable progress bars, and warnings about single requests, whose callers get errors anyway."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
