"""Cost of the gateway: requests/s and latency through it, beside plain Ray Serve, in one run.

    python benchmarks/gateway_overhead.py [--rounds 3] [--seconds 4] [--open 1000]

A request is echoed, 10 KB there and back, or answered with a stream of 50 pieces, by the same trivial model:

    gateway      POST /v2/models/NAME/infer, or /v1/completions with `stream`, through the gateway
    composition  an ingress deployment that calls the model by handle: what one writes with plain Serve
    direct       the model's own URL: the gateway's HTTP application, guard and all, in the model's replica, which is
                 POST /v2/models/NAME/infer, or /models/NAME/v1/completions with `stream`
    bare         the model's replica answering HTTP with nothing around it: one hop
    fastapi      FastAPI under uvicorn, without Serve: for scale

With `--open 1000`, that many streams are held open at once, one piece a second, and the memory that the gateway's
process and the plain ingress's take for them is compared.

One replica each. They take turns within every round, so that what else the machine does meets all of them; medians
over the rounds are compared. Load comes from `wrk`.

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
from dataclasses import dataclass

import aiohttp
import psutil
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from maas_ray import cluster
from maas_ray.serve.api.model_calls import Answer, Usage
from maas_ray.serve.api.open_inference.tensors import InferBody
from maas_ray.serve.caller import ANONYMOUS, Caller
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.replicas.direct import SingleModel, create_single_app
from maas_ray.serve.routes import Route, Target, direct_path
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.serve.text.types import Delta, TextRequest
from maas_ray.serve.upstreams import RELAY
from maas_ray.settings import Settings

PIECES = 50
ECHO = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["x" * 10_000]}]}).encode()
STREAM = json.dumps({"model": "text", "prompt": "Once upon a time", "max_tokens": PIECES, "stream": True}).encode()
SLOW = "slowly"
OPEN_BAR = 1.5
BARS = {
    "echo": {("gateway", "composition"): 2.2, ("direct", "bare"): 0.9},
    "stream": {("gateway", "composition"): 8, ("direct", "composition"): 11},
}


@dataclass(frozen=True)
class Measured:
    """One run of one route at one concurrency."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


class Trivial:
    """The model: answers at once."""

    async def infer(self, body: InferBody, caller: Caller) -> Answer[InferBody]:
        return Answer(body, Usage(rows=1))

    async def generate(self, request: TextRequest, caller: Caller):
        for number in range(PIECES):
            if request.prompt == SLOW:
                await asyncio.sleep(1)
            yield Delta(" word", "length" if number == PIECES - 1 else None, 4, number + 1)

    async def complete(self, request: TextRequest, caller: Caller) -> list[Delta]:
        return [Delta(" word", "length", 4, 1)]


class Bare(Trivial):
    """The model, answering HTTP with nothing around it."""

    async def __call__(self, request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")


class Direct(Trivial):
    """The model, answering HTTP as `direct: true` does."""

    def __init__(self, route: Route) -> None:
        self._single = SingleModel(self, route)

    def __serve_build_asgi_app__(self):
        return create_single_app(self._single, "secret")

    def record_replica_metadata(self) -> dict[str, str]:
        return {RELAY: "secret"}


class Ingress:
    """The equivalent in plain Serve: call by handle, answer."""

    def __init__(self, handle) -> None:
        self._infer, self._generate = handle.infer, handle.options(method_name="generate", stream=True)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if request.url.path.endswith("/echo"):
            answer = await self._infer.remote(InferBody(body), ANONYMOUS)
            return Response(answer.body.data, media_type="application/json")
        asked = json.loads(body)
        deltas = self._generate.remote(TextRequest(asked["prompt"], asked["max_tokens"]), ANONYMOUS)
        return StreamingResponse(self._events(deltas), media_type="text/event-stream")

    async def _events(self, deltas):
        async for delta in deltas:
            yield f"data: {json.dumps({'choices': [{'text': delta.text}]})}\n\n".encode()
        yield b"data: [DONE]\n\n"


FASTAPI = """
import json, sys, uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
app = FastAPI()
@app.post("/echo")
async def echo(request: Request):
    return Response(await request.body(), media_type="application/json")
@app.post("/stream")
async def stream(request: Request):
    await request.body()
    async def events():
        for _ in range(int(sys.argv[2])):
            yield f"data: {json.dumps({'choices': [{'text': ' word'}]})}\\n\\n".encode()
    return StreamingResponse(events(), media_type="text/event-stream")
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


def start(settings: Settings) -> dict[str, dict[str, str]]:
    """Bring everything of Serve's up. Returns the URL of each way, by what is asked."""
    # Not before the cluster is known: how Ray takes addresses is settled when it is imported.
    from ray import serve

    from maas_ray.serve import gateway

    def deployment(kind: type, *arguments, name: str = "Model"):
        found = serve.deployment(kind, name=name, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
        return found.bind(*arguments)

    def route(name: str, application: str, kind: str) -> Route:
        fields = {"version": f"{name}/1", "digest": "0" * 64, "created": 0, "inputs": (), "outputs": ()}
        targets = (Target(application=application, version=f"{name}/1"),)
        return Route(name=name, targets=targets, kind=kind, task="none", timeout_s=60, **fields)

    url = control.start(settings)
    model = serve.ingress()(Direct)
    direct = deployment(model, route("direct", "direct", "predict"))
    routes = (route("text", "text", "generate"), route("echo", "echo", "predict"))
    for name, application, prefix in (
        ("text", deployment(model, routes[0]), direct_path("text")),
        ("echo", deployment(model, routes[1]), None),
        ("bare", deployment(Bare), "/bare"),
        ("direct", direct, direct_path("direct")),
        ("composition", deployment(Ingress, deployment(Trivial), name="Ingress"), "/composition"),
        (GATEWAY_APP, gateway.application(GatewayArgs(max_replicas=1), routes), "/"),
    ):
        control.submit(application, name, version="1", route_prefix=prefix, user_code=name != GATEWAY_APP)
    for name in ("text", "echo", "bare", "direct", "composition", GATEWAY_APP):
        control.wait(name, placement_timeout_s=60, startup_timeout_s=120, report=lambda now: None)
    control.wait_for_http(f"{url}/v2/health/live")
    for name in ("direct", "text"):
        control.wait_for_http(f"{url}{direct_path(name)}")
    return {
        "echo": {
            "gateway": f"{url}/v2/models/echo/infer",
            "composition": f"{url}/composition/echo",
            "direct": f"{url}{direct_path('direct')}/infer",
            "bare": f"{url}/bare",
        },
        "stream": {
            "gateway": f"{url}/v1/completions",
            "composition": f"{url}/composition/stream",
            "direct": f"{url}/models/text/v1/completions",
        },
    }


# --- load ------------------------------------------------------------------------------------------


def measure(url: str, body: bytes, concurrency: int, seconds: float) -> Measured:
    """Load on one route, by `wrk`."""
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


def memory_of_open_streams(urls: dict[str, str], count: int) -> bool:
    """Hold streams open, print the memory that they take, and return True if the bar is kept."""
    body = json.dumps({"model": "text", "prompt": SLOW, "max_tokens": PIECES, "stream": True}).encode()
    taken = {}
    for way, process in (("gateway", f"{GATEWAY_APP}:Gateway"), ("composition", "composition:Ingress")):
        replica = next(
            one for one in psutil.process_iter() if process in one.name() or process in " ".join(one.cmdline())
        )
        before = replica.memory_full_info().uss
        taken[way] = asyncio.run(_held(urls[way], body, count, replica)) - before
        print(f"{count} open streams, {way:12} +{taken[way] / 1e6:.0f} MB over {before / 1e6:.0f} MB", flush=True)
    ratio = taken["gateway"] / taken["composition"]
    print(f"gateway ÷ composition {ratio:.2f}, at most {OPEN_BAR}")
    return ratio <= OPEN_BAR


async def _held(url: str, body: bytes, count: int, replica: psutil.Process) -> int:
    """Open streams, and return the memory of the replica when all have begun, in bytes."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        answers = []
        for _ in range(0, count, 50):  # a queue of connections is short
            answers += await asyncio.gather(*(client.post(url, data=body) for _ in range(50)))
        firsts = await asyncio.gather(*(answer.content.readany() for answer in answers))
        assert all(firsts), "streams without a first piece"
        await asyncio.sleep(5)
        memory = replica.memory_full_info().uss
        for answer in answers:
            answer.close()
        return memory


# --- report ----------------------------------------------------------------------------------------


def compare(asked: dict[str, dict[str, str]], rounds: int, seconds: float) -> int:
    """Measure, print, and return 0 if the gateway holds its promises."""
    bodies = {"echo": ECHO, "stream": STREAM}
    kept = True
    for what, ways in asked.items():
        for url in ways.values():
            measure(url, bodies[what], 4, 2)  # warm
        for concurrency in (1, 16, 64):
            runs: dict[str, list[Measured]] = {way: [] for way in ways}
            for number in range(rounds):
                # In turns, and each round begins with another.
                for way in list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]:
                    runs[way].append(measure(ways[way], bodies[what], concurrency, seconds))
            print(
                f"\n{what}, c={concurrency}, medians of {rounds} rounds of {seconds:g} s; load {os.getloadavg()[0]:.1f}"
            )
            for way, found in runs.items():
                rate, p50, p99 = (
                    statistics.median(getattr(run, field) for run in found) for field in ("rate", "p50_ms", "p99_ms")
                )
                errors = sum(run.errors for run in found)
                kept &= errors == 0
                line = f"  {way:12} {rate:7.0f} requests/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"
                for (mine, other), bar in BARS[what].items():
                    if way == mine:
                        # Ratios within a round, because both sides of it share the load of the machine.
                        ratios = [one.rate / base.rate for one, base in zip(found, runs[other], strict=True)]
                        line += f"   ÷ {other} {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
                        kept &= statistics.median(ratios) >= bar
                print(line + (f"   {errors} errors" if errors else ""), flush=True)
    bars = ", ".join(
        f"{what}: {mine} at least {bar} of {other}" for what in BARS for (mine, other), bar in BARS[what].items()
    )
    print(f"\n{'kept' if kept else 'NOT kept'}: {bars}")
    return 0 if kept else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--open", type=int, default=0)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("Load comes from wrk, which is not installed here.")
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        ports = cluster.free_ports(3)
        settings = Settings.from_environment({"MAAS_HOME": home, "MAAS_HTTP_PORT": str(ports[0])})
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=ports[1])
        fastapi = subprocess.Popen([sys.executable, "-c", FASTAPI, str(ports[2]), str(PIECES)])
        try:
            cluster.connect(settings, start=False)
            asked = start(settings)
            for what, ways in asked.items():
                ways["fastapi"] = f"http://127.0.0.1:{ports[2]}/{what}"
            if arguments.open:
                return 0 if memory_of_open_streams(asked["stream"], arguments.open) else 1
            return compare(asked, arguments.rounds, arguments.seconds)
        finally:
            fastapi.kill()
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
