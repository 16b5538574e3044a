"""Cost of many endpoints: latency and the gateway's memory with 200 declared and 20 asked, beside one endpoint.

    python benchmarks/many_models.py [--declared 200] [--live 20] [--rounds 5] [--requests 300]

Small image classifiers, each of a name of its own, all on one shared replica that holds as many as are asked. The
gateway has a table of one route and one of all routes by turns, within every round, and is asked:

    one      one endpoint, in the table of one
    one/all  the same endpoint, in the table of all
    live     as many requests, over the live endpoints in turn

with one caller and with eight; batches are of one row, as eight callers of one endpoint would share theirs.
Ratios are of one round's figures to `one`. Memory is the gateway process's resident set, after each table has been
asked. At last, what a miss costs: endpoints asked for the first time, each making another one leave, beside hits in
the same run.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from maas_ray import DeploySpec, Registry, cluster, deploy
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.serve import gateway
from maas_ray.serve.deployment import ownership
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.serve.routes import Table
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.tasks.vision.networks import Cnn

BODY = json.dumps(
    {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}]}
).encode()
LATENCY_BAR, MEMORY_BAR = 1.2, 1.1


def register(settings: Settings, count: int) -> list[str]:
    """So many models of one version each, with weights of their own; their names."""
    import torch
    from safetensors.torch import save_file

    rows = [{"image": np.full((8, 8, 1), 25 * shade, np.uint8), "label": str(shade)} for shade in range(10)]
    task, network, registry = ImageClassificationSpec().fit(rows), Cnn(), Registry(settings)
    names = [f"digits-{number:03}" for number in range(count)]
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        module = network.build(task).eval()
        with tempfile.TemporaryDirectory() as directory:
            task.save(Path(directory))
            network.write_config(module, task, Path(directory))
            save_file(module.state_dict(), Path(directory) / "model.safetensors", metadata={"format": "pt"})
            meta = BundleMeta(name=name, task=task.spec.type, metrics={}, lineage=Lineage())
            registry.register(publish_bundle(settings, Path(directory), meta))
    return names


@dataclass(frozen=True)
class Measured:
    """Latencies of one run, ms."""

    p50: float
    p99: float


async def load(url: str, names: list[str], callers: int, requests: int) -> Measured:
    """So many requests by so many callers, over the names in turn, each on a kept connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    took: list[float] = []

    async def caller(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for place in range(number, requests, callers):
            name = names[place % len(names)]
            head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            began = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"{name}: {answer.decode()}")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            took.append((time.perf_counter() - began) * 1e3)
        writer.close()

    await asyncio.gather(*map(caller, range(callers)))
    took.sort()
    return Measured(statistics.median(took), took[int(len(took) * 0.99)])


def pid_of(application: str) -> int:
    (deployment,) = control.applications()[application]["deployments"].values()
    (replica,) = [one for one in deployment["replicas"] if one["state"] == "RUNNING"]
    return int(replica["pid"])


def resident_mb(application: str) -> float:
    return psutil.Process(pid_of(application)).memory_info().rss / 1e6


def show(table: Table, version: str) -> None:
    """Give the gateway this routing table, as a deployment does; returns when Serve has told its replica."""
    control.submit(gateway.application(GatewayArgs(), table), GATEWAY_APP, version=version, route_prefix="/")
    control.wait(GATEWAY_APP, placement_timeout_s=60, startup_timeout_s=60, report=lambda _: None)


def gateway_version() -> str:
    """The code version of the gateway's replicas; a different one would replace them."""
    from maas_ray.serve.deployment.desired import code_version

    return code_version()


def compare(settings: Settings, arguments: argparse.Namespace) -> int:
    """Measure, print, and return 0 if the bars are kept."""
    began = time.monotonic()
    names = register(settings, arguments.declared)
    registered = time.monotonic()
    url = ""
    for name in names:
        spec = {"version": f"{name}/1", "replicas": "shared", "max_batch_size": 1}
        url = deploy(DeploySpec.parse(spec), settings=settings).url
    deployed = time.monotonic()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(names)} models registered in "
        f"{registered - began:.0f} s, deployed one by one in {deployed - registered:.0f} s",
        flush=True,
    )
    with Endpoints(settings).exclusive() as all_routes:
        pass
    live = names[: arguments.live]
    tables = {"one": all_routes[:1], "one/all": all_routes, "live": all_routes}
    asked = {"one": live[:1], "one/all": live[:1], "live": live}
    version, memory = gateway_version(), {}
    before = pid_of(GATEWAY_APP)
    control.delete([GATEWAY_APP])  # its memory shall not be what the deployments left
    control.wait_until_gone(GATEWAY_APP)
    kept = True
    runs: dict[tuple[str, int], list[Measured]] = {}
    for number in range(-1, arguments.rounds):  # the first is to warm up, and is not counted
        for side, table in tables.items():
            show(table, version)
            control.wait_for_http(f"{url}/v2/health/live")
            time.sleep(1)  # until the replica has the table
            asyncio.run(load(url, asked[side], 1, 2 * len(asked[side])))
            for callers in (1, 8):
                found = asyncio.run(load(url, asked[side], callers, arguments.requests))
                if number >= 0:
                    runs.setdefault((side, callers), []).append(found)
            memory.setdefault(side, []).append(resident_mb(GATEWAY_APP))
    assert pid_of(GATEWAY_APP) != before
    for callers in (1, 8):
        print(f"\n{callers} callers, medians of {arguments.rounds} rounds, load {os.getloadavg()[0]:.1f}")
        for side in tables:
            ratios = [a.p50 / b.p50 for a, b in zip(runs[side, callers], runs["one", callers], strict=True)]
            print(
                f"  {side:8} p50 {statistics.median(run.p50 for run in runs[side, callers]):6.2f} ms   p99 "
                f"{statistics.median(run.p99 for run in runs[side, callers]):6.2f} ms   p50 ÷ one "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            )
            kept &= statistics.median(ratios) <= LATENCY_BAR
    first = {side: found[0] for side, found in memory.items()}
    grown = first["live"] / first["one"]
    kept &= grown <= MEMORY_BAR
    print(
        f"\nthe gateway: {first['one']:.0f} MB with one route, {first['live']:.0f} MB with {len(names)} and "
        f"{len(live)} asked, ratio {grown:.3f}; at the end {memory['live'][-1]:.0f} MB"
    )
    misses(url, names, live)
    print(f"the shared replica: {resident_mb(ownership.shared_app(Endpoints(settings).platform)):.0f} MB")
    print(("kept" if kept else "NOT kept") + f": p50 at most {LATENCY_BAR} and memory at most {MEMORY_BAR} of one")
    return 0 if kept else 1


def misses(url: str, names: list[str], live: list[str]) -> None:
    """Print what a request costs whose model is loaded, and one whose is not."""
    hit = [asyncio.run(load(url, [name], 1, 1)).p50 for name in live for _ in range(2)][1::2]
    miss = [asyncio.run(load(url, [name], 1, 1)).p50 for name in names[len(live) : 3 * len(live)]]
    print(
        f"a hit {statistics.median(hit):.1f} ms, a miss {statistics.median(miss):.1f} ms (highest {max(miss):.1f}): "
        f"another one ended, the bundle opened, its network loaded and warmed, on new connections each"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--declared", type=int, default=200)
    parser.add_argument("--live", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        shared = Path(home) / "shared.yaml"
        shared.write_text(f"max_models: {arguments.live}\nscaling: {{max_replicas: 1}}\n")
        settings = Settings.from_environment(
            {"MAAS_HOME": home, "MAAS_HTTP_PORT": str(cluster.free_ports(1)[0]), "MAAS_SHARED": str(shared)}
        )
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=cluster.free_ports(1)[0])
        try:
            cluster.connect(settings, start=False)
            return compare(settings, arguments)
        finally:
            import ray

            ray.shutdown()
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
