"""JSON schemas compiled on trial, in a process beside the engine's, before the engine sees them.

OpenVINO compiles a schema to a grammar inside a step, so all requests wait. The time that takes cannot be foreseen: 20
required integers take milliseconds, 100 optional ones a minute. So each schema is first compiled here, with a limit
of processor time, by a pipeline around a tiny network with the model's tokenizer. A schema that exceeds the limit, or
cannot be compiled, is refused. The process starts with the first schema, and again after one that exceeded the limit.
"""

import asyncio
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maas_ray.errors import DeploymentError, RequestError
from maas_ray.serve.engines import Engine
from maas_ray.serve.engines.openvino.conversion import TRIAL_MODEL
from maas_ray.serve.engines.processes import module_command, module_environment
from maas_ray.serve.text.types import GenerateRequest, Tokens

LIMIT_S = 2.0
"""Most seconds of processor time that a schema may take. The engine, too, takes them once for each schema."""
_WAIT_S = 60.0  # longest wait for an answer, on a machine that is busy
_KEPT = 1000  # outcomes


class GrammarEngine:
    """An engine whose schemas are compiled on trial first.

    Args:
        engine: the engine.
        model: directory of the converted model.
        limit_s: most seconds of processor time for a schema.
    """

    def __init__(self, engine: Engine, model: Path, limit_s: float = LIMIT_S) -> None:
        self._engine, self.supports = engine, engine.supports
        self._model, self._limit_s = model, limit_s
        self._thread = ThreadPoolExecutor(1, "grammars")  # one schema at a time
        self._outcomes: OrderedDict[str, str] = OrderedDict()  # by digest; empty: the schema is fine
        self._helper: tuple[subprocess.Popen[bytes], Connection] | None = None

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        return self._engine.generate(request) if request.json_schema is None else self._restricted(request)

    def check(self) -> None:
        self._engine.check()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._end()
        self._engine.close()

    async def _restricted(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        problem = await asyncio.wrap_future(self._thread.submit(self._outcome, request.json_schema or ""))
        if problem:
            raise RequestError(
                f"Invalid JSON schema in '{request.schema_param}': schema: {problem}.",
                param=request.schema_param,
                code="invalid_json_schema",
            )
        async with aclosing(self._engine.generate(request)) as stream:
            async for tokens in stream:
                yield tokens

    def _outcome(self, schema: str) -> str:
        digest = hashlib.sha256(schema.encode()).hexdigest()
        problem = self._outcomes.pop(digest, None)
        if problem is None:
            problem = self._tried(schema)
        self._outcomes[digest] = problem
        if len(self._outcomes) > _KEPT:
            self._outcomes.popitem(last=False)
        return problem

    def _tried(self, schema: str) -> str:
        too_large = f"its grammar takes more than {self._limit_s:g} s to compile; make it smaller, or fields required"
        while True:
            new = self._helper is None
            process, connection = self._helper or self._begin()
            try:
                connection.send(schema)
                answer = self._received(connection)
                break
            except (EOFError, OSError):
                status = self._status(process)
            if status == -signal.SIGXCPU:  # the kernel ended the process at its limit
                return too_large
            if new:
                return f"its compilation ended with status {status}"
            # An older process may have ended before, for a lack of memory for example.
        if isinstance(answer, float):
            return too_large if answer > self._limit_s else ""
        self._end()
        return f"it cannot be compiled to a grammar: {answer}"

    def _begin(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = Pipe()
        process = subprocess.Popen(
            module_command(
                "maas_ray.serve.engines.openvino.grammars", str(theirs.fileno()), str(self._model), str(self._limit_s)
            ),
            stdin=subprocess.DEVNULL,
            env=module_environment(),
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._helper = process, ours
        try:
            self._received(ours)
        except (EOFError, OSError) as error:
            raise DeploymentError(
                f"the process that compiles JSON schemas ended with status {self._status(process)}.",
                code="engine_failed",
            ) from error
        return process, ours

    def _received(self, connection: Connection) -> Any:
        if not connection.poll(_WAIT_S):
            self._end()
            raise DeploymentError(
                f"the process that compiles JSON schemas did not answer within {_WAIT_S:g} s.", code="engine_failed"
            )
        return connection.recv()

    def _status(self, process: subprocess.Popen[bytes]) -> int:
        """The status of a process that has ended by itself."""
        if self._helper is None:
            raise DeploymentError("the text engine has been closed.", code="engine_stopped")
        status = process.wait()
        self._end()
        return status

    def _end(self) -> None:
        """End the process, if there is one."""
        helper, self._helper = self._helper, None
        if helper is not None:
            process, connection = helper
            process.kill()
            process.wait()
            connection.close()


# --- the process -----------------------------------------------------------------------------------


def serve(connection: Connection, model: Path, limit_s: float) -> None:
    """Compile schemas until the other end closes: sends the seconds that each took, or the reason why it cannot be."""
    pipeline = _pipeline(model)
    _compile(pipeline, json.dumps({"type": "null"}))  # loads what every schema needs
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    connection.send(None)
    while True:
        schema = connection.recv()
        began = time.process_time()
        # The kernel ends the process at the first whole second above the limit.
        resource.setrlimit(resource.RLIMIT_CPU, (int(began + limit_s) + 1, hard))
        try:
            _compile(pipeline, schema)
        except Exception as error:
            connection.send((str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip("."))
            return
        connection.send(time.process_time() - began)


def _pipeline(model: Path) -> Any:
    from openvino_genai import ContinuousBatchingPipeline, SchedulerConfig, Tokenizer

    scheduler = SchedulerConfig()
    scheduler.max_num_seqs, scheduler.max_num_batched_tokens, scheduler.num_kv_blocks = 1, 32, 4
    return ContinuousBatchingPipeline(model / TRIAL_MODEL, Tokenizer(model), scheduler, "CPU")


def _compile(pipeline: Any, schema: str) -> None:
    import numpy as np
    from openvino import Tensor
    from openvino_genai import GenerationConfig, StructuredOutputConfig

    config = GenerationConfig()
    config.max_new_tokens = 1
    config.structured_output_config = StructuredOutputConfig(json_schema=schema)
    # Without its handle, a request is dropped before its first step.
    handle = pipeline.add_request(0, Tensor(np.array([[0, 0]], dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    handle.cancel()


def main() -> None:
    """Arguments: the file descriptor of the connection, the converted model, the limit."""
    os.nice(10)  # after the engine
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(EOFError, ConnectionError):
        serve(Connection(int(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3]))


if __name__ == "__main__":
    main()
