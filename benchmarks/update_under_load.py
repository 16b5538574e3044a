"""Effect of an update on clients: failed requests and the worst stall, beside plain Ray Serve, in one run.

    python benchmarks/update_under_load.py [--clients 4] [--settle 3]

The same small image classifier, one replica, behind the same HAProxy:

    maas     `promote` and `rollback`, through the gateway
    plain    a deployment that loads the same bundle, brought to another version by `serve.run`

    good     to a version that works
    bad      to one whose weights have a flipped byte, which cannot load
    back     to the version before
    zero     no requests until no replica is left; then all clients at once

An autoscaled endpoint that has grown from 1 to 3 replicas, as it is (kept) and as Serve treats `initial_replicas` that
are the minimum at every submission (reset). A single replica refuses some of its clients:

    live     another `request_timeout_s`, which running replicas take
    promote  another version

Clients ask without pause while an update runs and for `--settle` seconds after it. A request failed that was
not answered with 200 within 60 s. The stall is the longest time in which none was answered; for `zero`, the
longest that one waited. Plain Serve tries a constructor 20 times before it gives up; here 3 times, as the other.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from maas_ray import DeploySpec, Registry, cluster, deploy, promote, rollback
from maas_ray.errors import DeploymentError
from maas_ray.registry.bundle import BundleMeta, Lineage, publish_bundle
from maas_ray.registry.versions import ModelVersion
from maas_ray.serve.deployment import rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.verbs import Endpoint
from maas_ray.settings import Settings
from maas_ray.tasks.vision.classification import ImageClassificationSpec
from maas_ray.tasks.vision.networks import Cnn

BODY = json.dumps(
    {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}]}
).encode()
IDLE_S, ASK_S = 2.0, 60.0
GROWN, ONGOING, ASKING = 3, 4, 10  # replicas; requests that each answers at once; clients


def register(settings: Settings, number: int) -> ModelVersion:
    """A version of the classifier, with random weights."""
    import torch
    from safetensors.torch import save_file

    rows = [{"image": np.full((8, 8, 1), shade, np.uint8), "label": str(shade)} for shade in (20, 230)]
    task, network = ImageClassificationSpec().fit(rows), Cnn(channels=(8,), hidden_size=8)
    torch.manual_seed(number)
    module = network.build(task).eval()
    directory = Path(settings.home) / f"bundle-{number}"
    directory.mkdir(parents=True)
    task.save(directory)
    network.write_config(module, task, directory)
    save_file(module.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    meta = BundleMeta(name="shade", task=task.spec.type, metrics={}, lineage=Lineage())
    return Registry(settings).register(publish_bundle(settings, directory, meta))


def damage(version: ModelVersion) -> None:
    """Flip a bit of its weights."""
    path = Path(version.uri) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


# --- the two ---------------------------------------------------------------------------------------


class Maas:
    """An endpoint."""

    def __init__(self, settings: Settings, versions: list[ModelVersion]) -> None:
        self._settings, self._versions = settings, versions
        Registry(settings).set_alias(versions[0], "champion")
        scaling = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": IDLE_S}
        spec = {"version": "shade@champion", "scaling": scaling, "resources": {"cpus": 0.5}}
        self.url = f"{deploy(DeploySpec.parse(spec), settings=settings).url}/v2/models/shade/infer"

    def good(self) -> None:
        promote(self._versions[1].reference, "champion", settings=self._settings)

    def bad(self) -> None:
        with suppress(DeploymentError):
            promote(self._versions[2].reference, "champion", settings=self._settings)

    def back(self) -> None:
        rollback("shade", settings=self._settings)

    def application(self) -> str:
        return next(name for name in control.applications() if name.startswith("model-"))


class Grown:
    """An endpoint with three replicas, each of which answers `ONGOING` requests at once and lets as many wait."""

    def __init__(self, settings: Settings, versions: list[ModelVersion], name: str) -> None:
        self._settings, self._versions, self._name = settings, versions, name
        self.grow()
        url = self._deploy().url
        self.url = f"{url}/v2/models/{name}/infer"

    def grow(self) -> None:
        """Return to the first version, with three replicas."""
        Registry(self._settings).set_alias(self._versions[0], self._name)
        self._deploy(scaling={"min_replicas": GROWN, "max_replicas": GROWN})
        self._deploy()

    def live(self) -> None:
        self._deploy(request_timeout_s=250)

    def promote(self) -> None:
        promote(self._versions[1].reference, self._name, settings=self._settings)

    def _deploy(self, **changes: Any) -> Endpoint:
        spec = {
            "version": f"shade@{self._name}",
            "endpoint": self._name,
            "scaling": {"min_replicas": 1, "max_replicas": GROWN},
            "resources": {"cpus": 0.25},
            "max_ongoing_requests": ONGOING,
            "max_queued_requests": ONGOING,
            "batch_wait_ms": 50,
        }
        return deploy(DeploySpec.parse(spec | changes), settings=self._settings)


@contextmanager
def reset_replicas() -> Iterator[None]:
    """Begin with the minimum of replicas at every submission."""
    kept = rollout._first_replicas
    rollout._first_replicas = lambda scaling, *_: max(1, scaling.min_replicas)
    try:
        yield
    finally:
        rollout._first_replicas = kept


class Model:
    """The equivalent in plain Serve."""

    def __init__(self, uri: str) -> None:
        from maas_ray.registry.bundle import open_bundle

        bundle = open_bundle(uri)
        directory = bundle.fetch()
        self._task = bundle.load_task(directory)
        self._network = self._task.load_model(directory)

    async def __call__(self, request):
        (tensor,) = (await request.json())["inputs"]
        image = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
        answer = self._task.predict(self._network, {"image": image})
        return {name: array.tolist() for name, array in answer.items()}


class Plain:
    """The same model without maas_ray."""

    def __init__(self, url: str, versions: list[ModelVersion]) -> None:
        self._versions, self.url = versions, f"{url}/plain"
        self._run(0)

    def _run(self, number: int) -> None:
        from ray import serve

        deployment = serve.deployment(
            name="Model",
            ray_actor_options={"num_cpus": 0.5},
            autoscaling_config={
                "min_replicas": 0,
                "initial_replicas": 1,
                "max_replicas": 1,
                "downscale_delay_s": IDLE_S,
            },
            max_constructor_retry_count=2,
        )(Model)
        serve.run(deployment.bind(self._versions[number].uri), name="plain", route_prefix="/plain")

    def good(self) -> None:
        self._run(1)

    def bad(self) -> None:
        with suppress(RuntimeError):
            self._run(2)

    def back(self) -> None:
        self._run(0)

    def application(self) -> str:
        return "plain"


# --- load ------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """Observations of one phase's clients: the time of each good answer and the duration of each request."""

    answered: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def stall(self) -> float:
        return max((b - a for a, b in zip(self.answered, self.answered[1:], strict=False)), default=float("inf"))


def ask(url: str, seen: Seen) -> None:
    """One request on a connection of its own."""
    parts, began = urlsplit(url), time.monotonic()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ASK_S)
    try:
        connection.request("POST", parts.path, BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        good = response.status == 200
    except (OSError, http.client.HTTPException):
        good = False
    finally:
        connection.close()
    seen.took.append(time.monotonic() - began)
    if good:
        seen.answered.append(time.monotonic())
    else:
        seen.failed += 1
        time.sleep(0.05)  # a server that is away would be counted thousands of times


def under_load(url: str, update: Callable[[], None], clients: int, settle: float) -> tuple[Seen, float]:
    """The clients' observations during an update, and its duration."""
    seen, stop = Seen(), threading.Event()

    def client() -> None:
        while not stop.is_set():
            ask(url, seen)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    began = time.monotonic()
    update()
    took = time.monotonic() - began
    time.sleep(settle)
    seen.answered.append(time.monotonic())  # a stall may last to the end
    stop.set()
    for thread in threads:
        thread.join()
    return Seen(sorted(seen.answered), seen.took, seen.failed), took


def from_zero(side: Maas | Plain, clients: int) -> Seen:
    """The observations of clients that arrive when no replica is left."""
    deadline = time.monotonic() + 120
    name = side.application()
    while any(one["replicas"] for one in control.applications()[name]["deployments"].values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} does not scale to zero")
        time.sleep(0.3)
    seen = Seen()
    threads = [threading.Thread(target=ask, args=(side.url, seen)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def compare(settings: Settings, clients: int, settle: float) -> int:
    """Measure, print, and return 0 if no request of an endpoint failed."""
    versions = [register(settings, number) for number in range(3)]
    damage(versions[2])
    sides: dict[str, Maas | Plain] = {"maas": Maas(settings, versions)}
    sides["plain"] = Plain(control.start(settings), versions)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {clients} clients")
    failed = 0
    for phase in ("good", "bad", "back"):
        for name, side in sides.items():
            seen, took = under_load(side.url, getattr(side, phase), clients, settle)
            print(
                f"{phase:5} {name:6} {seen.failed:4} of {len(seen.took):6} requests failed   worst stall "
                f"{seen.stall:6.2f} s   the update took {took:5.1f} s",
                flush=True,
            )
            failed += seen.failed if name == "maas" else 0
    for name, side in sides.items():
        seen = from_zero(side, clients)
        print(f"zero  {name:6} {seen.failed:4} of {len(seen.took):6} requests failed   longest {max(seen.took):6.2f} s")
        failed += seen.failed if name == "maas" else 0
    failed += compare_grown(settings, versions, settle)
    print("kept" if not failed else "NOT kept", "(bar: no request of an endpoint fails)")
    return 1 if failed else 0


def compare_grown(settings: Settings, versions: list[ModelVersion], settle: float) -> int:
    """Measure and print an endpoint that has grown. Returns the requests that were refused."""
    failed, endpoint = 0, Grown(settings, versions, "grown")
    for phase in ("live", "promote"):
        for name, behaviour in (("reset", reset_replicas), ("kept", nullcontext)):
            endpoint.grow()
            with behaviour():
                seen, _ = under_load(endpoint.url, getattr(endpoint, phase), ASKING, settle)
            print(f"{phase:7} {name:6} {seen.failed:4} of {len(seen.took):6} requests refused", flush=True)
            failed += seen.failed if name == "kept" else 0
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--settle", type=float, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        port = cluster.free_ports(1)[0]
        settings = Settings.from_environment({"MAAS_HOME": home, "MAAS_HTTP_PORT": str(port)})
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=cluster.free_ports(1)[0])
        try:
            cluster.connect(settings, start=False)
            return compare(settings, arguments.clients, arguments.settle)
        finally:
            import ray

            ray.shutdown()
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
