"""Deployed versions under load and in change: limits, clients that leave, updates, failures, replicas that die."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest

from maas_ray import Registry, diff, endpoints, undeploy
from maas_ray.errors import DeploymentError, NotFoundError
from tests.support.bundles import register, text_task
from tests.support.errors import raises
from tests.support.openvino import convert_version
from tests.support.served import TEXT, Served, complete, image_request, put

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module", autouse=True)
def more_versions(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`lm@candidate`, its second version, and `long`, which can generate for many seconds."""
    directory, settings = tmp_path_factory.mktemp("bundles"), served.settings
    convert_version(settings, register(settings, "lm", TEXT, directory / "lm-2", seed=1, alias="candidate"))
    convert_version(settings, register(settings, "long", text_task(100_000), directory / "long"))


# --- limits


@pytest.fixture(scope="module")
def one_at_a_time(served: Served) -> Iterator[str]:
    """An endpoint that works on one request, lets one wait, and could generate for many seconds."""
    put(served.settings, "long/1", max_ongoing_requests=1, max_queued_requests=1, request_timeout_s=3)
    yield f"{served.url}/v1/completions"
    undeploy("long", settings=served.settings)


def endless(**changes) -> dict:
    return {"model": "long", "prompt": "x", "max_tokens": 99_000, "temperature": 0} | changes


def test_too_long_a_wait_is_a_504(one_at_a_time: str) -> None:
    began = time.monotonic()
    response = httpx.post(one_at_a_time, json=endless(), timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
    assert 2.5 < time.monotonic() - began < 10
    with httpx.stream("POST", one_at_a_time, json=endless(stream=True), timeout=60) as stream:
        last = [json.loads(line[6:]) for line in stream.iter_lines() if line][-1]
    assert last["error"]["code"] == "timeout"


def test_who_leaves_frees_the_replica(one_at_a_time: str) -> None:
    with httpx.stream("POST", one_at_a_time, json=endless(stream=True), timeout=60) as stream:
        next(stream.iter_lines())
    began = time.monotonic()
    assert httpx.post(one_at_a_time, json=endless(max_tokens=2), timeout=60).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(one_at_a_time, json=endless(), timeout=0.3)
    assert httpx.post(one_at_a_time, json=endless(max_tokens=2), timeout=60).status_code == 200
    assert time.monotonic() - began < 2.5  # less than either would have gone on for


@pytest.fixture(scope="module")
def patient(served: Served) -> Iterator[str]:
    """An endpoint that would generate for minutes."""
    yield put(served.settings, "long/1", endpoint="patient", request_timeout_s=60).name
    undeploy("patient", settings=served.settings)


def working(seconds: float = 0.1) -> set[int]:
    """Processes of the patient endpoint's engine that use the processor now."""

    def used() -> dict[int, float]:
        times = {}
        for replica in psutil.process_iter(["cmdline"]):
            if "ServeReplica:model-patient-" in " ".join(replica.info["cmdline"] or ()):
                times |= {engine.pid: sum(engine.cpu_times()[:2]) for engine in replica.children()}
        return times

    before = used()
    time.sleep(seconds)
    return {pid for pid, spent in used().items() if spent - before.get(pid, spent) >= seconds / 5}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_stops_the_generation_within_a_second(served: Served, patient: str, n: int, stream: bool) -> None:
    body = json.dumps(endless(model=patient, stream=stream, n=n)).encode()
    address = served.url.removeprefix("http://").split(":")
    took = []
    for _ in range(2):
        assert not working()
        with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            deadline = time.monotonic() + 20
            while not working():
                assert time.monotonic() < deadline, "the generation did not begin"
            if stream:
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        left = time.monotonic()
        while working():
            assert time.monotonic() < left + 20, "the generation goes on"
        took.append(time.monotonic() - left - 0.1)  # the last look saw no work for so long
    assert min(took) < 1, took  # the machine may have been busy once


def test_overload_is_a_429(one_at_a_time: str) -> None:
    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as http:
            return await asyncio.gather(*(http.post(one_at_a_time, json=endless()) for _ in range(6)))

    found = asyncio.run(ask_all())
    refused = [response for response in found if response.status_code == 429]
    assert len(refused) >= 3
    assert {response.status_code for response in found} == {429, 504}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


# --- changes


def applications() -> set[str]:
    """Those that run or come up; not those that are going."""
    from maas_ray.serve.deployment import serve_control as control

    return {name for name, found in control.applications().items() if found["status"] != "DELETING"}


def replica_ids(application: str) -> set[str]:
    from maas_ray.serve.deployment import serve_control as control

    deployments = control.applications()[application]["deployments"].values()
    return {replica["replica_id"] for deployment in deployments for replica in deployment["replicas"]}


def test_a_new_version_takes_over_without_a_failed_request(served: Served) -> None:
    gateway, before = replica_ids("maas-gateway"), applications()
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=30) as http:
            while not stop.is_set():
                body = {"model": "lm", "prompt": "def ", "max_tokens": 4}
                statuses.append(http.post(f"{served.url}/v1/completions", json=body).status_code)

    first = complete(served.url).json()["system_fingerprint"]
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert put(served.settings, "lm@candidate", endpoint="lm").version == "lm/2"
    finally:
        stop.set()
        asking.join(30)
    assert set(statuses) == {200}
    assert len(statuses) > 5
    second = complete(served.url).json()["system_fingerprint"]
    assert second != first
    assert Registry(served.settings).resolve("lm/2").digest[:12] in second
    assert replica_ids("maas-gateway") == gateway  # a new table restarts nothing
    assert len(applications() - before) == len(before - applications()) == 1  # the old one is gone


def test_other_scaling_restarts_nothing(served: Served) -> None:
    put(served.settings, "lm/2")
    (application,) = [name for name in applications() if name.startswith("model-lm-")]
    before = replica_ids(application)
    put(served.settings, "lm/2", scaling={"min_replicas": 1, "max_replicas": 2})
    assert replica_ids(application) == before


def test_updates_keep_the_replicas_that_autoscaling_added(served: Served) -> None:
    def replicas(**options: int) -> set[str]:
        options = {"max_batch_size": 4, "request_timeout_s": 60} | options
        put(served.settings, "img/1", scaling={"min_replicas": 1, "max_replicas": 2}, **options)
        (application,) = [name for name in applications() if name.startswith("model-img-")]
        return replica_ids(application)

    put(served.settings, "img/1", max_batch_size=4, scaling={"min_replicas": 2, "max_replicas": 2})
    before = replicas()
    assert len(before) == 2
    assert replicas(request_timeout_s=59) == before
    after = replicas(max_batch_size=5)
    assert len(after) == 2
    assert not after & before
    assert [found for found in diff(settings=served.settings) if found.endpoint == "img"] == []
    put(served.settings, "img/1", max_batch_size=4)


def test_a_deployment_that_fails_leaves_what_was_served(served: Served) -> None:
    put(served.settings, "lm/2")
    before, running = complete(served.url).json()["system_fingerprint"], applications()
    with raises(DeploymentError, "no_room", "CPU: a replica needs 64, the cluster has 4"):
        # Serve waits as long as a request may take for a replica that never came, and so does its shutdown.
        put(served.settings, "lm/1", resources={"cpus": 64}, placement_timeout_s=2, request_timeout_s=5)
    with pytest.raises(DeploymentError, match="kv_cache_gb"):
        put(served.settings, "lm/1", kv_cache_gb=1e-6)
    with raises(DeploymentError, "no_room"):  # the same replicas, but more than fit
        put(served.settings, "lm/2", scaling={"min_replicas": 9, "max_replicas": 9}, placement_timeout_s=2)
    (found,) = [one for one in endpoints(settings=served.settings) if one.name == "lm"]
    assert (found.version, found.state) == ("lm/2", "serving")
    assert found.problem.startswith("lm/2: ")
    assert complete(served.url).json()["system_fingerprint"] == before
    assert applications() == running
    with pytest.raises(NotFoundError, match="no version 7"):
        put(served.settings, "lm/7")


def test_two_deployers_at_once_lose_no_route(served: Served) -> None:
    code = (
        "import sys; from maas_ray import DeploySpec, deploy; "
        "deploy(DeploySpec.parse({'version': 'img/1', 'endpoint': sys.argv[1], 'resources': {'cpus': 0.5}}))"
    )
    environment = {**os.environ, **served.settings.environment()}
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], env=environment, stdout=-1, stderr=-1)
        for name in ("left", "right.one")
    ]
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    for name in ("left", "right.one", "img", "lm"):
        assert httpx.get(f"{served.url}/v2/models/{name}").status_code == 200


def test_a_replica_that_dies_is_replaced(served: Served) -> None:
    import ray

    (application,) = [name for name in applications() if name.startswith("model-left-")]
    from maas_ray.serve.deployment import serve_control as control

    (deployment,) = control.applications()[application]["deployments"].values()
    (replica,) = deployment["replicas"]
    ray.kill(ray.get_actor(replica["actor_name"], namespace="serve"))
    pixels = np.zeros((1, 8, 8, 1), np.uint8)
    deadline = time.monotonic() + 60
    while True:
        response = httpx.post(f"{served.url}/v2/models/left/infer", json=image_request(pixels), timeout=60)
        if response.status_code == 200:
            break
        assert response.status_code == 503  # never a 500
        assert time.monotonic() < deadline
    assert replica_ids(application).isdisjoint({replica["replica_id"]})


def test_undeploying_takes_the_route_first(served: Served) -> None:
    for name in ("left", "right.one"):
        undeploy(name, settings=served.settings)
        assert httpx.get(f"{served.url}/v2/models/{name}").status_code == 404
    assert not [name for name in applications() if "left" in name or "right" in name]
    with raises(NotFoundError, "endpoint_not_found", "img, lm"):
        undeploy("left", settings=served.settings)
