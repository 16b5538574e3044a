"""From zero to the first token, by phase: an endpoint of its own, one on shared replicas, and plain Ray Serve.

    python benchmarks/cold_start.py [--rounds 3]

The Llama of `generation.py` (17 million parameters), one replica each, all behind the same HAProxy. Before every
request nothing of the side is left that must not be; then one streamed completion is asked for:

    own     `maas deploy` with min_replicas: 0, scaled to zero
    shared  `replicas: shared`, the replica warm, this model not loaded: another one took its place
    plain   a deployment that loads the bundle with Transformers' Auto classes, scaled to zero

What can lie on a node beforehand does: the bundle's files, and what OpenVINO made of them. The phases end where

    replica  its constructor begins: Serve's decision, a process, the imports that Serve and the class need
    bundle   the bundle is verified and its task loaded; for plain: Torch and Transformers are imported
    engine   the engine has the model; for plain: tokenizer and model are loaded
    warm     it has answered one short request; plain does not ask one
    first    the client has the first token

Seconds, medians of the rounds; ratios are of one round's figures.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from generation import make_version

from maas_ray import DeploySpec, cluster, deploy
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.settings import Settings

BAR = 0.6
PHASES = ("replica", "bundle", "engine", "warm", "first")
IDLE_S = 1.0


class Plain:
    """The equivalent in plain Serve."""

    def __init__(self, directory: str) -> None:
        self._phases = {"replica": time.time()}
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._phases["bundle"] = time.time()
        torch.set_num_threads(1)
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory)
        self._phases["engine"] = self._phases["warm"] = time.time()

    def phases(self) -> dict[str, float]:
        return self._phases

    async def __call__(self, request):
        import threading

        from starlette.responses import StreamingResponse
        from transformers import TextIteratorStreamer

        asked = await request.json()
        ids = self._tokenizer(asked["prompt"], return_tensors="pt")
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True)
        arguments = {**ids, "streamer": streamer, "max_new_tokens": asked["max_tokens"], "do_sample": False}
        threading.Thread(target=self._model.generate, kwargs=arguments).start()
        return StreamingResponse(f"data: {json.dumps(piece)}\n\n" for piece in streamer if piece)


def first_token(url: str, model: str) -> tuple[float, float]:
    """Ask; when, and when the first token was there."""
    parts, asked = urlsplit(url), time.time()
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    body = {"model": model, "prompt": "def main", "max_tokens": 8, "temperature": 0, "stream": True}
    connection.request("POST", parts.path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    while not (line := response.readline()).startswith(b"data: "):
        if not line:
            raise RuntimeError(f"{url}: {response.status}, and no token")
    first = time.time()
    response.read()
    connection.close()
    return asked, first


def wait_until_zero(application: str) -> None:
    deadline = time.monotonic() + 120
    while any(one["replicas"] for one in control.applications()[application]["deployments"].values()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{application} does not scale to zero")
        time.sleep(0.3)
    time.sleep(2)  # processes end


def durations(asked: float, ends: dict[str, float], first: float) -> dict[str, float]:
    """Seconds of each phase; one that was over before the request takes none."""
    found, before = {}, asked
    for phase in PHASES:
        end = max(before, first if phase == "first" else ends[phase])
        found[phase], before = end - before, end
    return found | {"all": first - asked}


def compare(settings: Settings, rounds: int) -> int:
    """Measure, print, and return 0 if the bar is kept."""
    from ray import serve

    version = make_version(settings)
    directory = version.open().fetch(Path(settings.home) / "bundles")
    zero = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": IDLE_S}
    own = DeploySpec.parse({"version": version.reference, "endpoint": "own", "scaling": zero})
    url = deploy(own, settings=settings).url
    for name in ("shared", "other"):
        spec = {"version": version.reference, "endpoint": name, "replicas": "shared"}
        deploy(DeploySpec.parse(spec), settings=settings)
    routes = {name: Endpoints(settings).get(name).route for name in ("own", "shared")}
    scaling = zero | {"initial_replicas": 1}
    deployment = serve.deployment(name="Plain", ray_actor_options={"num_cpus": 1}, autoscaling_config=scaling)(Plain)
    serve.run(deployment.bind(str(directory)), name="plain", route_prefix="/plain")
    completions = f"{url}/v1/completions"
    first_token(f"{url}/plain", "")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)

    runs: dict[str, list[dict[str, float]]] = {"own": [], "shared": [], "plain": []}
    for _ in range(rounds):
        wait_until_zero(routes["own"].target.application)
        asked, first = first_token(completions, "own")
        runs["own"].append(durations(asked, control.ask(routes["own"].target.application, "phases"), first))
        first_token(completions, "other")  # which takes the place of `shared`
        time.sleep(1)
        asked, first = first_token(completions, "shared")
        ends = control.ask(routes["shared"].target.application, "phases", shared=routes["shared"].target.shared)
        runs["shared"].append(durations(asked, ends, first))
        wait_until_zero("plain")
        asked, first = first_token(f"{url}/plain", "")
        runs["plain"].append(durations(asked, control.ask("plain", "phases"), first))

    for side, found in runs.items():
        print(f"{side:8}" + "  ".join(f"{run['replica']:.1f} + {run['all'] - run['replica']:.2f}" for run in found))
    print(f"\nmedians of {rounds} rounds, load {os.getloadavg()[0]:.1f}; the last is ÷ plain")
    print("        " + "".join(f"{phase:>9}" for phase in (*PHASES, "all")))
    ratios = {}
    for side, found in runs.items():
        against = [mine["all"] / other["all"] for mine, other in zip(found, runs["plain"], strict=True)]
        ratios[side] = statistics.median(against)
        seconds = (statistics.median(run[phase] for run in found) for phase in (*PHASES, "all"))
        print(
            f"{side:8}" + "".join(f"{one:9.3f}" for one in seconds) + f"   {ratios[side]:.3f} "
            f"({min(against):.3f}–{max(against):.3f})"
        )
    kept = ratios["own"] <= BAR
    print(("kept" if kept else "NOT kept") + f": an endpoint of its own at most {BAR} of plain")
    return 0 if kept else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as home:
        shared = Path(home) / "shared.yaml"
        shared.write_text("max_models: 1\nscaling: {max_replicas: 1}\n")
        settings = Settings.from_environment(
            {"MAAS_HOME": home, "MAAS_HTTP_PORT": str(cluster.free_ports(1)[0]), "MAAS_SHARED": str(shared)}
        )
        os.environ |= settings.environment()
        os.environ.pop("RAY_ADDRESS", None)
        cluster.up(settings, dashboard_port=cluster.free_ports(1)[0])
        try:
            cluster.connect(settings, start=False)
            return compare(settings, arguments.rounds)
        finally:
            cluster.down(settings)


if __name__ == "__main__":
    sys.exit(main())
