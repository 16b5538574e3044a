"""Clients that a gateway must survive, and requests that an engine must.

    python benchmarks/abuse.py [--only uploads streams …] [--uploads 200] [--idle 1000] [--stream-seconds 600]

`uploads` hold back their last byte, `idle` connections send half a header, and `streams` go on while HAProxy reloads
five times: against the application of a gateway, in a process of its own, behind HAProxy with the configuration of
`maas up`; without Ray. Beside the first two, one client sends requests of 10 KB, one after the other, and its p99 is
compared with that before. A gateway whose budget for bodies admits everything stands beside it, as gateways were before
they had one. It gets fewer uploads, because it keeps them all in memory.

`engine` sends the OpenVINO engine requests that it refuses while it answers others, and `prompt` a text codec prompts
far longer than the context while its event loop counts. Both run in this process.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil

from maas_ray.cluster import free_ports
from maas_ray.errors import MaasError
from tests.support import haproxy

UPLOAD = 15_000_000
SECONDS = 8.0
IDLE_SECONDS = 36.0
MAX_MB, MAX_RATIO = 300, 1.5
STREAMS, RELOADS = 10, 5
MAX_PROMPT_MS, CONTEXT = 50, 8192
ECHO = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["x" * 10_000]}]}).encode()
GATEWAY = """
import asyncio, sys, uvicorn
from starlette.responses import PlainTextResponse
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.text.types import Delta
from tests.support.models import InProcess, route

class Model(InProcess):
    async def infer(self, route, body, *, caller):
        return Answer(body, Usage(rows=1))

    async def stream(self, route, request, *, caller):  # a token a second
        for number in range(1, request.max_tokens + 1):
            await asyncio.sleep(1)
            yield Delta("x", "length" if number == request.max_tokens else None, 1, number)

models = Model(route("echo", "predict"), route("lm", "generate"))
api = create_app(models, body_limit=16_000_000, budget=int(sys.argv[2]))

async def app(scope, receive, send):
    healthy = scope["type"] == "http" and scope["path"] == "/-/healthz"
    await (PlainTextResponse("ok") if healthy else api)(scope, receive, send)

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


@contextmanager
def gateway(budget: int = 128_000_000) -> Iterator[tuple[haproxy.HaProxy, psutil.Process]]:
    """A gateway with this budget: HAProxy before it, and its process."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="maas-") as directory:
        path, front = haproxy.write_configuration(Path(directory), [port])
        process = subprocess.Popen([sys.executable, "-c", GATEWAY, str(port), str(budget)])
        try:
            with haproxy.running(path, front) as proxy:
                while httpx.get(f"{proxy.url}/v2").status_code != 200:
                    time.sleep(0.1)
                yield proxy, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


# --- others ----------------------------------------------------------------------------------------


@dataclass
class Seen:
    """Observations while something went on."""

    latencies: list[float]
    failed: int = 0
    peak_mb: float = 0.0

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.latencies, n=100)[98] * 1000


@contextmanager
def observed(url: str, process: psutil.Process) -> Iterator[Seen]:
    """Send requests of another client, and sample the gateway's memory, until the block ends."""
    seen, over = Seen([]), threading.Event()

    def request() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                started = time.perf_counter()
                answer = client.post(f"{url}/v2/models/echo/infer", content=ECHO)
                seen.latencies.append(time.perf_counter() - started)
                seen.failed += answer.status_code != 200

    def sample() -> None:
        while not over.is_set():
            seen.peak_mb = max(seen.peak_mb, process.memory_info().rss / 1e6)
            over.wait(0.5)

    threads = [threading.Thread(target=target) for target in (request, sample)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


# --- abuse -----------------------------------------------------------------------------------------


def connections(port: int, count: int, begin: bytes, rest: int, hold_s: float) -> int:
    """Open connections that send this and so many further bytes, and no more. Returns how many were given up."""
    until = time.monotonic() + hold_s

    async def one() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(begin)
            for _ in range(rest // 100_000):
                writer.write(bytes(100_000))
                await writer.drain()
            await asyncio.wait_for(reader.read(100), max(0.0, until - time.monotonic()))
        except TimeoutError:
            return False
        except OSError:
            pass
        finally:
            writer.transport.abort()
        return True

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*(one() for _ in range(count))))

    return asyncio.run(all_of_them())


def held(proxy: haproxy.HaProxy, process: psutil.Process, *arguments: object) -> tuple[Seen, int]:
    """`connections` from a process of their own, and the requests of another client meanwhile."""
    with ProcessPoolExecutor(1, get_context("spawn")) as abuser:
        abuser.submit(os.getpid).result()  # it has started
        with observed(proxy.url, process) as seen:
            given_up = abuser.submit(connections, proxy.port, *arguments).result()
    return seen, given_up


def uploads(arguments: argparse.Namespace) -> bool:
    """Uploads that hold back their last byte, with a budget for bodies and without."""
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD + 1}\r\n\r\n"
    kept = True
    for name, budget, count in (("128 MB", 128_000_000, arguments.uploads), ("all", 10**12, arguments.old_uploads)):
        with gateway(budget) as (proxy, process):
            with observed(proxy.url, process) as before:
                time.sleep(SECONDS)
            during, refused = held(proxy, process, count, head.encode(), UPLOAD, SECONDS)
        ratio = during.p99_ms / before.p99_ms
        print(
            f"budget {name}: {count} uploads of {UPLOAD / 1e6:g} MB without their last byte: {refused} refused; "
            f"{before.peak_mb:.0f} → {during.peak_mb:.0f} MB; p99 of others {before.p99_ms:.1f} → "
            f"{during.p99_ms:.1f} ms ({ratio:.2f} ×), {during.failed} of {len(during.latencies)} failed",
            flush=True,
        )
        if name != "all":
            kept = during.peak_mb <= MAX_MB and ratio <= MAX_RATIO and not during.failed
    return kept


def idle(arguments: argparse.Namespace) -> bool:
    """Connections that send half a header."""
    with gateway() as (proxy, process):
        seen, given_up = held(proxy, process, arguments.idle, b"POST /v1/comp", 0, IDLE_SECONDS)
    print(
        f"{arguments.idle} connections with half a header: {given_up} given up after {IDLE_SECONDS:g} s; p99 of others "
        f"{seen.p99_ms:.1f} ms, {seen.failed} of {len(seen.latencies)} failed",
        flush=True,
    )
    return given_up == arguments.idle and not seen.failed


def streams(arguments: argparse.Namespace) -> bool:
    """Streams of a token a second across reloads of HAProxy."""
    seconds = arguments.stream_seconds
    asked = {"model": "lm", "prompt": "x", "stream": True, "max_tokens": seconds}

    async def one(url: str) -> bool:
        """True if the stream was cut."""
        try:
            async with httpx.AsyncClient(timeout=60) as client:
                answer = await client.post(f"{url}/v1/completions", json=asked)
        except httpx.HTTPError:
            return True
        return answer.text.count('"text":"x"') != seconds or not answer.text.endswith("data: [DONE]\n\n")

    async def all_of_them(proxy: haproxy.HaProxy) -> int:
        running = [asyncio.create_task(one(proxy.url)) for _ in range(STREAMS)]
        for _ in range(RELOADS):
            await asyncio.sleep(seconds / (RELOADS + 1))
            await asyncio.to_thread(proxy.reload)
        return sum(await asyncio.gather(*running))

    with gateway() as (proxy, _):
        cut = asyncio.run(all_of_them(proxy))
    print(f"{STREAMS} streams of {seconds} s across {RELOADS} reloads of HAProxy: {cut} cut", flush=True)
    return cut == 0


# --- requests of an engine -------------------------------------------------------------------------


def engine(arguments: argparse.Namespace) -> bool:
    """Requests that the engine refuses, when it takes them up and later, while it answers three others."""
    from maas_ray.serve.engines.openvino.engine import OpenVinoEngine
    from maas_ray.serve.engines.restarting import RestartingEngine
    from tests.support.bundles import save_bundle
    from tests.support.engines import PROMPTS, TASK, request, run
    from tests.support.openvino import convert

    async def failures(engine: RestartingEngine) -> bool:
        def ask() -> list[asyncio.Task]:
            return [asyncio.create_task(run(engine, request(prompt, max_tokens=400))) for prompt in PROMPTS[:3]]

        expected, kept = await asyncio.gather(*ask()), True
        for when, options in {"at once": {"frequency_penalty": 3.0}, "later": {"json_schema": '{"type": "x"}'}}.items():
            began, others = time.perf_counter(), ask()
            await asyncio.sleep(0.05)
            try:
                await run(engine, request([5], **options))
                end = "answered"
            except MaasError as error:
                end = error.code
            got = await asyncio.gather(*others, return_exceptions=True)
            failed = sum(answer != right for answer, right in zip(got, expected, strict=True))
            print(
                f"refused {when}: {end}; {failed} of 3 others failed; {time.perf_counter() - began:.1f} s", flush=True
            )
            kept &= end != "answered" and not failed
        return kept

    with tempfile.TemporaryDirectory() as home:
        model = convert(save_bundle(TASK, Path(home) / "bundle"), "d" * 64, Path(home) / "converted")
        model, options = replace(model, context=2000), {"threads": 1, "max_requests": 8, "prefill_tokens": 64}
        started = RestartingEngine(lambda: OpenVinoEngine(model, kv_cache_bytes=10**9, **options))
        try:
            return asyncio.run(failures(started))
        finally:
            started.close()


def prompt(arguments: argparse.Namespace) -> bool:
    """Prompts far longer than the context, prepared as a replica does: beside its event loop."""
    from maas_ray.serve.text.codec import TextCodec
    from maas_ray.serve.text.types import TextRequest
    from tests.support.engines import TASK

    codec = TextCodec(TASK, context=CONTEXT, end_ids=())

    async def refused(times: int) -> bool:
        text, longest, over = "x" * (codec.max_characters * times), 0.0, False

        async def other() -> None:
            nonlocal longest
            while not over:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - before)

        counting = asyncio.create_task(other())
        await asyncio.sleep(0.05)
        before, end = time.perf_counter(), "accepted"
        try:
            await asyncio.to_thread(codec.prepare, TextRequest(text, 4))
        except MaasError as error:
            end = error.code
        took, over = (time.perf_counter() - before) * 1000, True
        await counting
        print(
            f"a prompt {times} × the most characters of a context of {CONTEXT}: {end} in {took:.1f} ms; the event loop "
            f"stood still for {longest * 1000:.1f} ms at most",
            flush=True,
        )
        return end != "accepted" and max(took, longest * 1000) < MAX_PROMPT_MS

    refusals = [asyncio.run(refused(times)) for times in (30, 300)]
    return all(refusals)


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    part.__name__: part for part in (uploads, idle, streams, engine, prompt)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--old-uploads", type=int, default=40)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--stream-seconds", type=int, default=600)
    arguments = parser.parse_args()
    broken = [name for name in arguments.only if not PARTS[name](arguments)]
    print(f"NOT kept: {', '.join(broken)}" if broken else "kept", f"(load {os.getloadavg()[0]:.1f})")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
