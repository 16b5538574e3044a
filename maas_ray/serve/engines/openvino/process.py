"""The process in which OpenVINO computes, at the other end of a connection from `OpenVinoEngine`.

One thread does everything: it receives requests, computes a step, and sends the new tokens. A step holds Python's
lock, so nothing else could run in the same process; and reading a result before it exists would block forever.

    received   `Load`, once; then (number, request) to begin, (number, None) to cancel
    sent       None when the model is loaded; then, after a step, a list of
               (number, `Tokens`, "" | FINISHED | REFUSED … | the cause of a failure), which may be empty;
               or a string, the cause of death

A request that cannot begin, or whose tokens cannot be read, ends alone. When a step fails, nobody knows whose fault
that is, and the pipeline is not to be used again: the process ends, and `restarting` finds out. When the other end
closes, this process ends.
"""

import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maas_ray.serve.engines.parameters import for_openvino
from maas_ray.serve.text.types import GenerateRequest, Tokens

FINISHED, REFUSED = "finished", "refused: "
_SILENCE_S = 1.0
"""Longest time without a message while there is work, unless a step takes longer."""
_DELIVERY_S, _LONGEST_S = 0.01, 0.2
"""Seconds between deliveries, for each request in flight, so that all requests together get 100 pieces a second; and
the longest interval. A piece costs processor time on its way to the client, whatever its size. All requests get theirs
at the same time, which wakes the other end once. The first and the last tokens of an answer do not wait."""


class _Running:
    """A request in flight, and its tokens that have not been sent yet."""

    def __init__(self, handle: Any, logprobs: bool) -> None:
        self.handle, self.begun = handle, False
        self.tokens = Tokens([], [])
        self.end = ""
        self._logprobs = logprobs

    def take(self) -> None:
        """Take the tokens of the last step. If that fails, the request ends."""
        from openvino_genai import GenerationStatus

        try:
            status = self.handle.get_status()
            while self.handle.can_read():
                for output in self.handle.read().values():
                    self.tokens.ids.extend(output.generated_ids)
                    if self._logprobs:
                        self.tokens.logprobs.extend(output.generated_log_probs)
        except Exception as error:
            self.end = _cause(error)
            self.handle.cancel()
            return
        if status != GenerationStatus.RUNNING:
            self.end = FINISHED if status == GenerationStatus.FINISHED else f"it ended the request as {status.name}"


@dataclass(frozen=True)
class Load:
    """The model to load, and its limits.

    Args:
        directory: a converted model.
        threads: number of threads that compute.
        max_requests: most sequences in a step.
        prefill_tokens: most tokens in a step.
        pages: pages of the key-value cache.
        adapter: files of a LoRA adapter that is added to the model. None: the model itself.
    """

    directory: Path
    threads: int
    max_requests: int
    prefill_tokens: int
    pages: int
    adapter: Path | None = None


def serve(connection: Connection) -> None:
    """Answer requests until the other end closes."""
    import openvino_genai  # noqa: F401  at once, because a process may be started long before its model is known

    pipeline = _pipeline(connection.recv())
    connection.send(None)
    running: dict[int, _Running] = {}
    sent_at = delivered_at = 0.0
    while True:
        while connection.poll(0 if pipeline.has_non_finished_requests() else None):
            number, request = connection.recv()
            if request is not None:
                try:
                    running[number] = _Running(_begin(pipeline, number, request), request.sampling.logprobs)
                except Exception as error:
                    connection.send([(number, Tokens([]), REFUSED + _cause(error))])
            else:
                if number in running:
                    running.pop(number).handle.cancel()
                connection.send([])  # the other end waits for a sign of life after each message
        pipeline.step()
        now, deliveries = time.monotonic(), []
        due = now - delivered_at >= min(_DELIVERY_S * len(running), _LONGEST_S)
        for number, request in list(running.items()):
            request.take()
            if request.end or (request.tokens.ids and (due or not request.begun)):
                deliveries.append((number, request.tokens, request.end))
                request.tokens, request.begun = Tokens([], []), True
            if request.end:
                del running[number]
        if due:
            delivered_at = now
        if deliveries or now - sent_at >= _SILENCE_S:
            connection.send(deliveries)
            sent_at = now


def _pipeline(load: Load) -> Any:
    from openvino import Type
    from openvino_genai import ContinuousBatchingPipeline, SchedulerConfig

    directory = load.directory
    if load.adapter is not None:
        from maas_ray.serve.engines.openvino.adapter import with_adapter

        directory = with_adapter(directory, load.adapter)
    scheduler = SchedulerConfig()
    scheduler.max_num_seqs = load.max_requests
    scheduler.max_num_batched_tokens = load.prefill_tokens
    scheduler.num_kv_blocks = load.pages
    scheduler.enable_prefix_caching = True
    properties = {
        "INFERENCE_NUM_THREADS": load.threads,
        "ENABLE_HYPER_THREADING": True,  # Ray counts the processor's threads as CPUs
        "ENABLE_CPU_PINNING": False,  # pinning would give the same cores to every replica
        # By default OpenVINO computes in bfloat16 if the processor can, and keeps the cache in 8 bits.
        "INFERENCE_PRECISION_HINT": Type.f32,
        "KV_CACHE_PRECISION": Type.f32,
    }
    return ContinuousBatchingPipeline(directory, scheduler, "CPU", properties)


def _begin(pipeline: Any, number: int, request: GenerateRequest) -> Any:
    import numpy as np
    from openvino import Tensor
    from openvino_genai import GenerationConfig, StructuredOutputConfig

    config = GenerationConfig()
    config.max_new_tokens = request.max_tokens
    config.ignore_eos = not request.end_ids
    config.stop_token_ids = set(request.end_ids)
    for name, value in for_openvino(request).items():
        setattr(config, name, value)
    if request.json_schema is not None:
        config.structured_output_config = StructuredOutputConfig(json_schema=request.json_schema)
    return pipeline.add_request(number, Tensor(np.array([request.prompt_ids], dtype=np.int64)), config)


def _cause(error: Exception) -> str:
    """The last line of OpenVINO's message: the lines before it name its own source files."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")


def main() -> None:
    """Argument: the file descriptor of the connection."""
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    main()
