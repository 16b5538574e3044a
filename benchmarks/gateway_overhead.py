"""What the gateway costs: requests/s and latency through it, beside plain Ray Serve, in one run.

    python benchmarks/gateway_overhead.py [--rounds 5] [--seconds 4]

Every route ends in the same kind of trivial model app, which answers at once with the same text:

    openai       POST /v1/completions through the gateway
    infer        POST /v2/models/trivial/infer through the gateway
    composition  an ingress deployment that parses JSON, calls the app by handle and answers JSON
    bare         the app itself, answering HTTP: one hop

One replica each. Routes take turns within every round, so that what else the machine does meets all of
them; medians over the rounds are compared. Load comes from `wrk` where it is installed, else from an
asyncio client in a process of its own.

Serve runs as `maas up` starts it, with HAProxy before the replicas: Serve's own proxy answers a quarter of
the requests or fewer. `RAY_SERVE_THROUGHPUT_OPTIMIZED` stays off: it runs a deployment's code on its replica's
main loop, which speeds up single answers but not streams, and lets code that blocks stop health checks.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from starlette.responses import JSONResponse

from maas_ray import cluster
from maas_ray.serve import control
from maas_ray.serve.routes import Route
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.serve.text import Delta, TextRequest
from maas_ray.settings import Settings

TEXT = "the quick brown fox"
COMPLETION = {"model": "trivial", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0.5}
INFER = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}


@dataclass(frozen=True)
class Measured:
    """One run of one route at one concurrency."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


class Trivial:
    """The model app: answers at once, to any of the callers."""

    async def complete(self, request: TextRequest) -> list[Delta]:
        return [Delta(TEXT, "stop", 4, 4)]

    async def generate(self, request: TextRequest):
        yield Delta(TEXT, "stop", 4, 4)

    async def infer(self, body: bytes) -> bytes:
        return body

    async def answer(self, document: dict) -> dict:
        return {"model": document["model"], "choices": [{"text": TEXT}]}

    async def __call__(self, request):
        return JSONResponse(await self.answer(await request.json()))


class Ingress:
    """What one writes with plain Serve: parse, call by handle, answer."""

    def __init__(self, handle) -> None:
        self._handle = handle

    async def __call__(self, request):
        return JSONResponse(await self._handle.answer.remote(await request.json()))


def start(settings: Settings) -> dict[str, tuple[str, bytes]]:
    """Bring everything up. Returns URL and body of each route."""
    # Not before the cluster is known: how Ray takes addresses is settled when it is imported.
    from ray import serve

    from maas_ray.serve import gateway

    url = control.start(settings)
    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}
    trivial = serve.deployment(Trivial, **options)
    plain = serve.deployment(Ingress, **options).bind(serve.deployment(Trivial, **options).bind())
    control.submit(trivial.bind(), "trivial", version="1", route_prefix=None)
    control.submit(trivial.bind(), "bare", version="1", route_prefix="/bare")
    control.submit(plain, "composition", version="1", route_prefix="/composition")
    routes = tuple(
        Route(
            name=name,
            application="trivial",
            kind=kind,
            task="none",
            version="trivial/1",
            digest="0" * 64,
            created=0,
            inputs=(),
            outputs=(),
            timeout_s=60,
        )
        for name, kind in (("trivial", "generate"), ("tensors", "predict"))
    )
    control.submit(gateway.application(GatewayArgs(max_replicas=1), routes), GATEWAY_APP, version="1", route_prefix="/")
    for name in ("trivial", "bare", "composition", GATEWAY_APP):
        control.wait(name, placement_timeout_s=60, startup_timeout_s=120, report=lambda now: None)
    control.wait_for_http(url)
    completion, tensors = json.dumps(COMPLETION).encode(), json.dumps(INFER).encode()
    return {
        "openai": (f"{url}/v1/completions", completion),
        "infer": (f"{url}/v2/models/tensors/infer", tensors),
        "composition": (f"{url}/composition", completion),
        "bare": (f"{url}/bare", completion),
    }


# --- load ------------------------------------------------------------------------------------------


def measure(url: str, body: bytes, concurrency: int, seconds: float) -> Measured:
    """Load on one route, from another process."""
    if shutil.which("wrk"):
        return _wrk(url, body, concurrency, seconds)
    command = [sys.executable, __file__, "--client", url, str(concurrency), str(seconds)]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    return Measured(**json.loads(done.stdout))


def _wrk(url: str, body: bytes, concurrency: int, seconds: float) -> Measured:
    script = f"""
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = {json.dumps(body.decode())}
done = function(summary, latency)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  print(string.format("measured %f %f %f %d", summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, bad))
end
"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--latency", "-s", file.name, url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate, p50, p99, errors = re.search(r"measured (\S+) (\S+) (\S+) (\d+)", out).groups()
    return Measured(float(rate), float(p50), float(p99), int(errors))


async def _client(url: str, body: bytes, concurrency: int, seconds: float) -> Measured:
    """Keep-alive connections over bare sockets: as little as Python can do for a request."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    head = f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    taken, errors = [], 0
    deadline = time.perf_counter() + seconds

    async def connection() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(name, int(port))
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)[1])
            await reader.readexactly(length)
            taken.append(time.perf_counter() - began)
            errors += answer.split(b" ", 2)[1] != b"200"
        writer.close()

    await asyncio.gather(*(connection() for _ in range(concurrency)))
    taken.sort()
    return Measured(len(taken) / seconds, taken[len(taken) // 2] * 1e3, taken[int(len(taken) * 0.99)] * 1e3, errors)


# --- report ----------------------------------------------------------------------------------------


def compare(routes: dict[str, tuple[str, bytes]], rounds: int, seconds: float) -> int:
    """Measure, print, and return 0 if the gateway holds its promise."""
    print(f"load: {'wrk' if shutil.which('wrk') else 'asyncio client'}; {os.cpu_count()} cores; Serve with HAProxy")
    for url, body in routes.values():
        measure(url, body, 4, 2)  # warm
    kept = True
    for concurrency in (1, 16):
        runs: dict[str, list[Measured]] = {name: [] for name in routes}
        for number in range(rounds):
            # In turns, and each round begins with another.
            names = list(routes)[number % len(routes) :] + list(routes)[: number % len(routes)]
            for name in names:
                runs[name].append(measure(*routes[name], concurrency, seconds))
        rates = {name: statistics.median(run.rate for run in found) for name, found in runs.items()}
        print(f"\nc={concurrency}, medians of {rounds} rounds of {seconds:g} s")
        for name, found in runs.items():
            p50, p99 = (statistics.median(getattr(run, field) for run in found) for field in ("p50_ms", "p99_ms"))
            errors = sum(run.errors for run in found)
            # Of the ratios of each round, which share what else the machine did: steadier than that of the medians.
            beside = statistics.median(
                mine.rate / other.rate for mine, other in zip(found, runs["composition"], strict=True)
            )
            print(
                f"  {name:12} {rates[name]:7.0f} requests/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   "
                f"÷ composition {beside:.2f}" + (f"   {errors} errors" if errors else "")
            )
            kept &= errors == 0 and (name not in ("openai", "infer") or beside >= 0.8)
    print("\n" + ("kept" if kept else "NOT kept") + ": through the gateway at least 0.8 of the composition")
    return 0 if kept else 1


def main() -> int:
    if sys.argv[1:2] == ["--client"]:
        url, concurrency, seconds = sys.argv[2:]
        found = asyncio.run(_client(url, sys.stdin.buffer.read(), int(concurrency), float(seconds)))
        print(json.dumps(asdict(found)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        port = cluster.free_ports(1)[0]
        settings = Settings.from_environment({"MAAS_HOME": home, "MAAS_HTTP_PORT": str(port)})
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=cluster.free_ports(1)[0])
        try:
            cluster.connect(settings, start=False)
            return compare(start(settings), arguments.rounds, arguments.seconds)
        finally:
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
