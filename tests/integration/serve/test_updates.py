"""Updates that drop nothing: promote, roll back, put right again, under load and under kill -9."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from maas_ray import DeploySpec, Registry, deploy, diff, endpoints, history, promote, reconcile, rollback, undeploy
from maas_ray.errors import DeploymentError, NotFoundError
from maas_ray.serve.deployment import ownership, reconciler, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, State
from maas_ray.serve.spec import GatewayArgs
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register
from tests.support.deployments import undeploy_all
from tests.support.errors import raises
from tests.support.load import Load

IMAGES = image_task()
SPEC = {"version": "shade@champion", "scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}}
BODY = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}]}


@pytest.fixture(scope="module")
def served(cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Endpoint `shade` from `shade@champion`, version 1; 2 is as good, 3 has a flipped byte in its weights."""
    directory = tmp_path_factory.mktemp("shades")
    for number in (1, 2, 3):
        alias = "champion" if number == 1 else None
        version = register(settings, "shade", IMAGES, directory / str(number), seed=number, alias=alias)
    weights = Path(version.uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    put(settings)
    yield settings
    undeploy_all(settings)


def put(settings: Settings, **changes):
    return deploy(DeploySpec.parse(SPEC | changes), settings=settings)


def now(settings: Settings):
    (found,) = [one for one in endpoints(settings=settings) if one.name == "shade"]
    return found


def load(settings: Settings) -> Load:
    return Load(f"{now(settings).url}/v2/models/shade/infer", BODY)


def become(value: Callable[[], object], wanted: object) -> None:
    """Wait until it is so; Serve passes options on to running replicas a moment later."""
    deadline = time.monotonic() + 30
    while (now := value()) != wanted:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)


def applications() -> dict[str, dict]:
    return {name: found for name, found in control.applications().items() if found["status"] != "DELETING"}


def pid_of(application: str) -> int:
    """The process of an application's one replica."""
    deadline = time.monotonic() + 30
    while True:
        (deployment,) = applications()[application]["deployments"].values()
        pids = [one["pid"] for one in deployment["replicas"] if one["state"] == "RUNNING"]
        if pids:
            return pids[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_unchanged_is_left_alone(served: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    before, pid = now(served), pid_of(Endpoints(served).get("shade").application)
    assert put(served) == before
    assert capsys.readouterr().out == "shade already serves shade/1; nothing to do\n"
    assert pid_of(Endpoints(served).get("shade").application) == pid
    assert diff(settings=served) == diff(DeploySpec.parse(SPEC), settings=served) == []
    (difference,) = diff(DeploySpec.parse(SPEC | {"scaling": {"max_replicas": 3}}), settings=served)
    assert (difference.what, difference.should, difference.found) == ("scaling.max_replicas", "3", "1")


def test_promoting_and_rolling_back_drop_nothing(served: Settings) -> None:
    registry = Registry(served)
    with load(served) as asked:
        asked.goes_on()
        (moved,) = promote("shade/2", "champion", settings=served)
        assert (moved.name, moved.version) == ("shade", "shade/2")
        assert registry.resolve("shade@champion").number == 2
        # A version that cannot load takes neither the alias nor the traffic.
        with pytest.raises(DeploymentError, match="sha256"):
            promote("shade/3", "champion", settings=served)
        assert registry.resolve("shade@champion").number == 2
        assert now(served).version == "shade/2"
        assert rollback("shade", settings=served).version == "shade/1"
    assert asked.failed == []
    assert [one.version for one in history("shade", settings=served)] == ["shade/1", "shade/2", "shade/1"]
    assert len([name for name in applications() if name.startswith("model-shade-")]) == 1
    assert diff(settings=served) == []
    with raises(NotFoundError, "history_entry_missing", "9", "shade"):
        rollback("shade", to=9, settings=served)
    assert promote("shade/1", "spare", settings=served) == []  # nobody follows it
    assert registry.resolve("shade@spare").number == 1


def test_a_direct_path_moves_with_the_route(served: Settings) -> None:
    def serve_there() -> set[str]:
        return {name for name, found in applications().items() if found["route_prefix"] == "/v2/models/shade"}

    url = load(served).url
    with load(served) as asked:
        asked.goes_on()
        other = "shade/1" if put(served, direct=True).version == "shade/2" else "shade/2"
        first = Endpoints(served).get("shade").application
        assert serve_there() == {first}
        asked.goes_on()
        promote(other, "champion", settings=served)
        second = Endpoints(served).get("shade").application
        assert (serve_there(), second != first) == ({second}, True)
        asked.goes_on()
    assert asked.failed == []
    # The same application, guard and all, whoever runs it.
    direct = httpx.post(url, json=BODY)
    wrong = httpx.post(url, json={"inputs": []})
    assert direct.json()["model_version"] == other.rpartition("/")[2]
    assert (wrong.status_code, list(wrong.json())) == (400, ["error"])
    assert httpx.get(url.removesuffix("/infer")).json()["name"] == "shade"
    assert httpx.post(url, content=b"x" * 17_000_000).status_code == 413
    # The model's own URL leads there too: these replicas know no other model.
    own = url.replace("/v2/", "/models/shade/v2/")
    assert httpx.post(own, json=BODY).json() == direct.json()
    for prefix in ("/models/shade/v1/models/other", "/v2/models/shade/v1/models/other"):
        assert "Served models: shade." in httpx.get(now(served).url + prefix).json()["error"]["message"]
    assert httpx.get(f"{now(served).url}/-/routes").status_code == 404
    # Limits reach running replicas; those that are not the gateway's are seen, and mended.
    table, running = Endpoints(served), pid_of(second)
    limits = GatewayArgs(body_limit_mb=1, cors_origins=("https://app.example",)).http_options()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "http_options", lambda running: limits)
        rollout.restore_options(table.get("shade"))

    def refused() -> tuple[int, str | None]:
        answer = httpx.post(own, content=b"x" * 1_100_000, headers={"origin": "https://app.example"})
        return answer.status_code, answer.headers.get("access-control-allow-origin")

    become(refused, (413, "https://app.example"))
    assert [(one.endpoint, one.what) for one in diff(settings=served)] == [("shade", "options")]
    assert [(one.endpoint, one.problem) for one in reconcile(settings=served)] == [("shade", "")]
    become(refused, (400, None))
    assert pid_of(second) == running
    # A path that went missing is seen, and given back.
    rollout._submit(table.get("shade"), None)
    assert [(one.endpoint, one.what) for one in diff(settings=served)] == [("shade", "path")]
    assert [(one.endpoint, one.problem) for one in reconcile(settings=served)] == [("shade", "")]
    assert diff(settings=served) == []
    with load(served) as asked:
        asked.goes_on()
        put(served)
        asked.goes_on()
    assert (asked.failed, serve_there(), diff(settings=served)) == ([], set(), [])


def test_without_an_answer_there_is_no_traffic(served: Settings) -> None:
    before, running = now(served), set(applications())
    wrong = {"inputs": [{"name": "picture", "datatype": "UINT8", "shape": [1], "data": [7]}]}
    with raises(DeploymentError, "smoke_request_failed", "400", "picture", "Answer: ", "image"):
        put(served, smoke=wrong, max_batch_size=3)
    after = now(served)
    assert (after.version, after.state) == (before.version, "serving")
    assert "smoke request" in after.problem
    assert set(applications()) == running
    put(served, smoke=BODY)


def test_what_is_lost_or_half_done_is_put_right(served: Settings) -> None:
    from ray import serve

    table = Endpoints(served)
    put(served)
    # A deployer died, before it had brought anything up and after; and one before it could tidy up.
    half = table.put(replace(table.get("shade"), application="model-shade-00000000", state=State.DEPLOYING))
    left = ownership.model_app(table.platform, "left", "0" * 8)
    control.submit(serve.deployment(Idle).bind(), left, version="1", route_prefix=None)
    assert {(one.endpoint, one.what) for one in diff(settings=served)} == {
        ("shade", "unfinished"),
        (left, "unwanted"),
    }
    with load(served) as asked:
        outcomes = reconcile(settings=served)
    assert asked.failed == []
    assert {one.endpoint: one.problem for one in outcomes} == {"shade": "", left: ""}
    assert table.get("shade").application != half.application
    assert (diff(settings=served), reconcile(settings=served)) == ([], [])

    # As after `maas down` and `maas up`.
    serve.shutdown()
    assert {(one.endpoint, one.what) for one in diff(settings=served)} == {
        ("shade", "missing"),
        ("maas-gateway", "missing"),
    }
    assert now(served).state == "down"
    assert not [one for one in reconcile(settings=served) if one.problem]
    assert httpx.post(f"{now(served).url}/v2/models/shade/infer", json=BODY).status_code == 200
    assert diff(settings=served) == []


def test_a_half_done_change_that_cannot_be_done_is_taken_back(served: Settings) -> None:
    table = Endpoints(served)
    stands = table.get("shade")
    table.put(replace(stands, version="shade/9", application="model-shade-11111111", state=State.DEPLOYING))
    (outcome,) = reconcile(settings=served)
    assert "no version 9" in outcome.problem
    found = table.get("shade")
    assert (found.version, found.application, found.state) == (stands.version, stands.application, State.SERVING)
    assert diff(settings=served) == []


class Idle:
    """An application that nobody needs."""


@pytest.mark.parametrize("who", ["replica", "gateway", "controller"])
def test_a_process_that_is_killed_is_replaced(served: Settings, who: str) -> None:
    application = Endpoints(served).get("shade").application
    import ray
    from ray.serve.context import _get_global_client

    with load(served) as asked:
        asked.goes_on()
        if who == "controller":
            pid = ray.get(_get_global_client()._controller.__ray_call__.remote(lambda _: os.getpid()))
        else:
            pid = pid_of(application if who == "replica" else "maas-gateway")
        process = psutil.Process(pid)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        asked.goes_on()
        deadline = time.monotonic() + 60
        while applications()[application]["status"] != "RUNNING" or pid_of("maas-gateway") == pid:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        asked.goes_on()
    if who == "gateway":
        # Requests on kept connections that it had not read are lost with it; HAProxy retries all others.
        assert len(asked.failed) <= 2
        assert all("disconnected without sending a response" in failure for failure in asked.failed)
    else:
        assert asked.failed == []
    assert diff(settings=served) == []


def test_requests_that_wait_for_a_first_replica_move_along(served: Settings) -> None:
    put(served, scaling={"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 0.5})
    application, url = Endpoints(served).get("shade").application, load(served).url
    deadline = time.monotonic() + 60
    while any(one["replicas"] for one in applications()[application]["deployments"].values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    other = "shade/1" if now(served).version == "shade/2" else "shade/2"
    with Load(url, BODY) as asked:
        promote(other, "champion", settings=served)
        asked.goes_on()
    assert asked.failed == []
    put(served)


def test_a_deployer_that_is_killed_is_finished_for(served: Settings) -> None:
    code = "import sys; from maas_ray import promote; promote(sys.argv[1], 'champion')"
    other = "shade/1" if now(served).version == "shade/2" else "shade/2"
    environment = {**os.environ, **served.environment()}
    deployer = subprocess.Popen([sys.executable, "-c", code, other], env=environment, stdout=-1)
    with load(served) as asked:
        while Endpoints(served).get("shade").state is not State.DEPLOYING:
            assert deployer.poll() is None
            time.sleep(0.02)
        deployer.kill()
        deployer.communicate(timeout=30)
        assert not [one for one in reconcile(settings=served) if one.problem]
        assert now(served).version == other
    assert asked.failed == []
    assert diff(settings=served) == []


def test_a_killed_reconciler_is_restarted_and_finishes_what_it_was_asked_for(served: Settings) -> None:
    import ray

    put(served)
    reconcile(settings=served)
    table = Endpoints(served)
    stands = table.get("shade")
    half = replace(stands, application="model-shade-22222222", state=State.DEPLOYING)
    actor = reconciler._actor(served)
    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    with load(served) as asked, ThreadPoolExecutor(1) as pool:
        changed = table.put(half).revision
        outcomes = pool.submit(reconcile, settings=served)
        while table.get("shade").revision == changed:  # until it has begun
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        assert not [one for one in outcomes.result(120) if one.problem]
    assert asked.failed == []
    assert ray.get(actor.__ray_call__.remote(lambda _: os.getpid())) != pid
    assert diff(settings=served) == []


def test_the_reconciler_repairs_unasked_but_deletes_nothing(served: Settings) -> None:
    import ray
    from ray import serve

    table = Endpoints(served)
    stands, left = table.get("shade"), ownership.model_app(table.platform, "left", "0" * 8)
    control.submit(serve.deployment(Idle).bind(), left, version="1", route_prefix=None)
    control.delete([stands.application])
    actor = reconciler._actor(served)
    ray.get(actor.loop_every.remote(0.5))
    try:
        deadline = time.monotonic() + 120
        while {(one.endpoint, one.what) for one in diff(settings=served)} != {(left, "unwanted")}:
            assert time.monotonic() < deadline
            time.sleep(0.3)
        assert httpx.post(f"{now(served).url}/v2/models/shade/infer", json=BODY).status_code == 200
        # A change that has just begun is its deployer's.
        begun = table.put(replace(table.get("shade"), application="model-shade-33333333", state=State.DEPLOYING))
        time.sleep(2)
        assert table.get("shade") == begun
    finally:
        ray.get(actor.loop_every.remote(0))
    assert not [one for one in reconcile(settings=served) if one.problem]
    assert diff(settings=served) == []


def test_another_platform_on_this_cluster_changes_nothing(served: Settings, tmp_path: Path) -> None:
    other = served.model_copy(update={"database": f"sqlite:///{tmp_path}/other.db"})
    # As if it had served on a cluster of its own before.
    shade, table, gone = Endpoints(served).get("shade"), Endpoints(other), "model-stranger-00000000"
    route = shade.route.with_target(application=gone)
    record = table.put(replace(shade, revision=0, name="stranger", application=gone, route=route))
    running, replicas = set(applications()), pid_of("maas-gateway")
    acts = {
        "deploy": lambda: deploy(DeploySpec.parse(SPEC | {"endpoint": "another"}), settings=other),
        "promote": lambda: promote("shade/1", "champion", settings=other),
        "rollback": lambda: rollback("stranger", to=1, settings=other),
        "undeploy": lambda: undeploy("stranger", settings=other),
        "reconcile": lambda: reconcile(settings=other),
    }
    with load(served) as asked:
        for act in acts.values():
            with raises(DeploymentError, "cluster_of_another_platform", Endpoints(served).platform.id):
                act()
    assert asked.failed == []
    assert (table.all(), set(applications()), pid_of("maas-gateway")) == ([record], running, replicas)
    assert [(one.name, one.state, one.url) for one in endpoints(settings=other)] == [("stranger", "down", "")]
    assert ("maas-gateway", "platform") in {(one.endpoint, one.what) for one in diff(settings=other)}
    assert diff(settings=served) == []
