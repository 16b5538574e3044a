"""Clients that a gateway must survive: uploads that hold back their last byte, and connections that stay idle.

    python benchmarks/abuse.py [--uploads 200] [--old-uploads 40] [--idle 1000]

The application of a gateway, in a process of its own, behind HAProxy with the configuration of `maas up`; without Ray.
Meanwhile one client sends requests of 10 KB, one after the other, and its p99 is compared with that before. A gateway
whose budget for bodies admits everything stands beside it, as gateways were before they had one. It gets fewer
uploads, because it keeps them all in memory.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from maas_ray.cluster import free_ports
from tests.support import haproxy

UPLOAD = 15_000_000
SECONDS = 8.0
IDLE_SECONDS = 36.0
MAX_MB, MAX_RATIO = 300, 1.5
ECHO = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["x" * 10_000]}]}).encode()
GATEWAY = """
import sys, uvicorn
from starlette.responses import PlainTextResponse
from maas_ray.serve.api.app import create_app
from maas_ray.serve.api.model_calls import Answer, Usage
from tests.support.models import InProcess, route

class Model(InProcess):
    async def infer(self, route, body, *, caller):
        return Answer(body, Usage(rows=1))

api = create_app(Model(route("echo", "predict")), body_limit=16_000_000, budget=int(sys.argv[2]))

async def app(scope, receive, send):
    healthy = scope["type"] == "http" and scope["path"] == "/-/healthz"
    await (PlainTextResponse("ok") if healthy else api)(scope, receive, send)

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


@contextmanager
def gateway(budget: int) -> Iterator[tuple[str, psutil.Process]]:
    """The URL of a gateway with this budget, and its process."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="maas-") as directory:
        path, front = haproxy.write_configuration(Path(directory), [port])
        process = subprocess.Popen([sys.executable, "-c", GATEWAY, str(port), str(budget)])
        try:
            with haproxy.running(path, front) as proxy:
                while httpx.get(f"{proxy.url}/v2").status_code != 200:
                    time.sleep(0.1)
                yield proxy.url, psutil.Process(process.pid)
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


async def connections(port: int, count: int, begin: bytes, rest: int, hold_s: float) -> int:
    """Open connections that send this and so many further bytes, and no more. Returns how many got an answer."""

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

    until = time.monotonic() + hold_s
    return sum(await asyncio.gather(*(one() for _ in range(count))))


def held(url: str, process: psutil.Process, count: int, begin: bytes, rest: int, hold_s: float) -> tuple[Seen, int]:
    """Requests of another client meanwhile, and the number of connections that were given up."""
    port, found = int(url.rpartition(":")[2]), [0]

    def work() -> None:
        found[0] = asyncio.run(connections(port, count, begin, rest, hold_s))

    thread = threading.Thread(target=work)
    with observed(url, process) as seen:
        thread.start()
        thread.join()
    return seen, found[0]


def uploads(url: str, process: psutil.Process, count: int) -> tuple[Seen, int]:
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD + 1}\r\n\r\n"
    return held(url, process, count, head.encode(), UPLOAD, SECONDS)


def compare(arguments: argparse.Namespace) -> int:
    """Measure, print, and return 0 if the gateway holds its promises."""
    kept = True
    for name, budget, count in (("128 MB", 128_000_000, arguments.uploads), ("all", 10**12, arguments.old_uploads)):
        with gateway(budget) as (url, process):
            with observed(url, process) as before:
                time.sleep(SECONDS)
            during, refused = uploads(url, process, count)
            ratio = during.p99_ms / before.p99_ms
            print(
                f"budget {name}: {count} uploads of {UPLOAD / 1e6:g} MB without their last byte: {refused} refused; "
                f"{before.peak_mb:.0f} → {during.peak_mb:.0f} MB; p99 of others {before.p99_ms:.0f} → "
                f"{during.p99_ms:.0f} ms ({ratio:.2f} ×), {during.failed} of {len(during.latencies)} failed",
                flush=True,
            )
            if count == arguments.old_uploads:
                continue
            kept &= during.peak_mb <= MAX_MB and ratio <= MAX_RATIO and not during.failed
            seen, given_up = held(url, process, arguments.idle, b"POST /v1/comp", 0, IDLE_SECONDS)
            print(
                f"{arguments.idle} connections with half a header: {given_up} given up after {IDLE_SECONDS:g} s; p99 "
                f"of others {seen.p99_ms:.0f} ms, {seen.failed} of {len(seen.latencies)} failed",
                flush=True,
            )
            kept &= given_up == arguments.idle and not seen.failed
    print("kept" if kept else "NOT kept", f"(load {os.getloadavg()[0]:.1f})")
    return 0 if kept else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--old-uploads", type=int, default=40)
    parser.add_argument("--idle", type=int, default=1000)
    return compare(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
