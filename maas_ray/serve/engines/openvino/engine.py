"""OpenVINO GenAI's continuous batching on the CPU, in a process of its own.

This module talks to that process: it sends requests as they arrive, and a thread passes new tokens to the event loops
that wait for them. `process` computes, and says why it is a process.
"""

import asyncio
import itertools
import subprocess
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maas_ray.errors import DeploymentError, RequestRefusedError
from maas_ray.serve.engines import parameters
from maas_ray.serve.engines.kv_cache import pages
from maas_ray.serve.engines.openvino.conversion import Converted
from maas_ray.serve.engines.openvino.process import FINISHED, REFUSED, Load
from maas_ray.serve.engines.processes import module_command, module_environment
from maas_ray.serve.text.types import GenerateRequest, Tokens

PATIENCE_S = 120.0
"""Longest time of a step. On a slow machine, a step with `prefill_tokens` of a large model's prompt takes a minute."""


@dataclass(frozen=True)
class _Waiting:
    """A request in flight: the queue for its tokens, and the event loop of that queue."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    arrived: "asyncio.Queue[tuple[Tokens, str]]" = field(default_factory=asyncio.Queue)


class OpenVinoEngine:
    """Continuous batching over a converted model. The constructor blocks until the model is loaded.

    Args:
        model: see `conversion`.
        threads: number of threads that compute.
        max_requests: most requests in a batch.
        kv_cache_bytes: most memory for keys and values; at least one full sequence must fit.
        prefill_tokens: maximum number of prompt tokens in one step.
        adapter: files of a LoRA adapter that is added to the model. None: the model itself.
        patience_s: the engine has died if it works for so long without finishing a step.

    Raises:
        DeploymentError: the key-value cache is too small for one sequence, or the model does not load.
    """

    def __init__(
        self,
        model: Converted,
        *,
        threads: int,
        max_requests: int,
        kv_cache_bytes: int,
        prefill_tokens: int,
        adapter: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        load = Load(
            directory=model.directory,
            threads=threads,
            max_requests=max_requests,
            prefill_tokens=max(prefill_tokens, max_requests),
            pages=pages(model.token_bytes, model.context, max_requests, kv_cache_bytes),
            adapter=adapter,
        )
        # A JSON schema restricts characters, so OpenVINO needs the tokenizer to know the characters of each token.
        self.supports = parameters.OPENVINO | ({"json_schema"} if model.spells_tokens else set())
        self._died, self._patience_s = "", patience_s
        self._silent_since: float | None = None  # while the process has work
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._process, self._connection = _prepared() or _start()
        # A thread, because sending a long prompt blocks until the end of a step; a single one, to keep the order.
        self._sender = ThreadPoolExecutor(1, "openvino-send")
        last_words: str | None = ""
        with suppress(EOFError, OSError):
            self._connection.send(load)
            last_words = self._connection.recv()
        if last_words is not None:
            raise DeploymentError(
                f"the model does not load into OpenVINO: {self._end(last_words)}.", code="model_load_failed"
            )
        self._receiver = threading.Thread(target=self._receive, name="openvino-receive", daemon=True)
        self._receiver.start()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        number, waiting, end = next(self._numbers), _Waiting(), ""
        self._waiting[number] = waiting
        try:
            self.check()  # after the registration, so that a later death reaches this request
            self._send((number, request))
            while not end:
                tokens, end = await waiting.arrived.get()
                while not end and not waiting.arrived.empty():
                    more, end = waiting.arrived.get_nowait()
                    tokens = Tokens(tokens.ids + more.ids, tokens.logprobs + more.logprobs)
                if end.startswith(REFUSED):
                    raise RequestRefusedError(end.removeprefix(REFUSED))
                if end not in ("", FINISHED):
                    raise DeploymentError(f"the text engine failed: {end}.", code="engine_failed")
                if tokens.ids:
                    yield tokens
        finally:
            del self._waiting[number]
            if not end:
                self._send((number, None))

    def check(self) -> None:
        since = self._silent_since
        if not self._died and since is not None and time.monotonic() - since > self._patience_s:
            self._process.kill()  # which ends its requests
            self._died = f"it has not finished a step for {self._patience_s:g} s"
        if self._died:
            raise DeploymentError(f"the text engine has stopped: {self._died}.", code="engine_stopped")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _send(self, message: tuple[int, GenerateRequest | None]) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
        self._sender.submit(self._connection.send, message)

    def _receive(self) -> None:
        last_words = ""
        with suppress(EOFError, OSError):
            while not last_words:
                message = self._connection.recv()
                if isinstance(message, str):
                    last_words = message
                else:
                    self._deliver(message)
                    self._silent_since = time.monotonic() if self._waiting else None
        self._died = self._end(last_words or self._died)
        self._deliver([(number, Tokens([]), self._died) for number in list(self._waiting)])

    def _deliver(self, step: list[tuple[int, Tokens, str]]) -> None:
        """Wake each event loop once, however many of its requests have new tokens."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Any]] = defaultdict(list)
        for number, tokens, end in step:
            waiting = self._waiting.get(number)
            if waiting is not None:
                by_loop[waiting.loop].append((waiting.arrived, (tokens, end)))
        for loop, items in by_loop.items():
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(_put_all, items)

    def _end(self, last_words: str) -> str:
        """End the process; returns the cause of its death."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        status = self._process.wait()
        self._connection.close()
        return last_words or f"its process ended with {f'signal {-status}' if status < 0 else f'status {status}'}"


_spare: "deque[tuple[subprocess.Popen[bytes], Connection]]" = deque(maxlen=1)


def prepare() -> None:
    """Start a process ahead of the next engine: for a small model, imports take most of the time of a start."""
    if not _spare:
        _spare.append(_start())


def _prepared() -> "tuple[subprocess.Popen[bytes], Connection] | None":
    """The process that was started ahead, if it is alive."""
    try:
        process, connection = _spare.pop()
    except IndexError:
        return None
    return (process, connection) if process.poll() is None else None


def _start() -> "tuple[subprocess.Popen[bytes], Connection]":
    ours, theirs = Pipe()
    process = subprocess.Popen(
        module_command("maas_ray.serve.engines.openvino.process", str(theirs.fileno())),
        stdin=subprocess.DEVNULL,
        env=module_environment(),
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return process, ours


def _put_all(items: list[tuple["asyncio.Queue[Any]", tuple[Tokens, str]]]) -> None:
    for queue, item in items:
        queue.put_nowait(item)
