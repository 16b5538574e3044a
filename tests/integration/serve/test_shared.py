"""Several models on one warm replica: loaded when asked for, swapped without a process, none another's burden."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from maas_ray import DeploySpec, deploy, diff, promote, reconcile, rollback, undeploy
from maas_ray.errors import DeploymentError
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.serve.deployment.ownership import shared_app
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register, text_task
from tests.support.deployments import undeploy_all
from tests.support.load import Load
from tests.support.openvino import convert_version

IMAGES, TEXT = image_task(), text_task(4096)
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
BODY = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": PIXELS.ravel().tolist()}]}


def app() -> str:
    return shared_app(Endpoints(Settings.from_environment()).platform)


@pytest.fixture(scope="module")
def served(
    cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, str, Path]]:
    """Endpoints one, two, three of `tone` and lm, lm2 of `words`, on one shared replica that holds two models."""
    directory = tmp_path_factory.mktemp("shared")
    for number in (1, 2, 3):
        version = register(settings, "tone", IMAGES, directory / f"tone-{number}", seed=number, alias=None)
        if number < 3:
            text = register(settings, "words", TEXT, directory / f"words-{number}", seed=number, alias=None)
            convert_version(settings, text)
    weights = Path(version.uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    file = directory / "shared.yaml"
    file.write_text("max_models: 2\nscaling: {max_replicas: 1}\nresources: {cpus: 0.5}\n")
    settings = settings.model_copy(update={"shared": str(file)})
    for name, version in (("one", "tone/1"), ("two", "tone/2"), ("three", "tone/1"), ("lm", "words/1")):
        endpoint = put(settings, version, name)
    assert (endpoint.engine, endpoint.replicas, endpoint.shared) == ("openvino", 1, True)
    put(settings, "words/2", "lm2")
    yield settings, endpoint.url, directory
    undeploy_all(settings)


def put(settings: Settings, version: str, name: str, **changes):
    spec = {"version": version, "endpoint": name, "replicas": "shared"} | changes
    return deploy(DeploySpec.parse(spec), settings=settings)


def applications() -> dict[str, dict]:
    return {name: found for name, found in control.applications().items() if found["status"] != "DELETING"}


def replicas() -> list[dict]:
    (deployment,) = applications()[app()]["deployments"].values()
    return [replica for replica in deployment["replicas"] if replica["state"] == "RUNNING"]


def engines() -> int:
    """How many engines' processes the shared replica has; one of them waits for the next model."""
    children = psutil.Process(replicas()[0]["pid"]).children()
    return sum("maas_ray.serve.engines.openvino.process" in child.cmdline() for child in children)


def scores(url: str, name: str) -> list[float]:
    response = httpx.post(f"{url}/v2/models/{name}/infer", json=BODY, timeout=60)
    assert response.status_code == 200, response.text
    assert response.json()["model_name"] == name
    return {output["name"]: output["data"] for output in response.json()["outputs"]}["scores"]


def words(url: str, name: str, **changes) -> str:
    body = {"model": name, "prompt": "def ", "max_tokens": 8, "seed": 3} | changes
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def expected_scores(directory: Path, number: int) -> list[float]:
    network = IMAGES.load_model(directory / f"tone-{number}")
    return IMAGES.predict(network, {"image": PIXELS})["scores"][0].tolist()


def test_all_answer_as_themselves_from_one_replica(served) -> None:
    settings, url, directory = served
    assert set(applications()) == {app(), "maas-gateway"}
    assert len(replicas()) == 1
    tones = {"one": 1, "two": 2, "three": 1}
    right = {name: expected_scores(directory, number) for name, number in tones.items()}
    right_words = {name: words(url, name) for name in ("lm", "lm2")}  # asked alone
    assert right_words["lm"] != right_words["lm2"]

    def ask(name: str) -> None:
        if name in right_words:
            assert words(url, name) == right_words[name]
        else:
            np.testing.assert_allclose(scores(url, name), right[name], rtol=1e-5)

    # More at once than the replica holds; each comes to its turn.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [*tones, *right_words] * 6))
    assert engines() <= 3
    for name in ("one", "two"):
        ask(name)
    assert engines() == 1  # both made room
    assert diff(settings=settings) == []
    assert httpx.get(f"{url}/v2/models/two/ready").json()["ready"]


def test_a_stream_in_flight_keeps_its_model(served) -> None:
    _, url, _ = served
    body = {"model": "lm", "prompt": "def ", "max_tokens": 4000, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        for name in ("one", "two", "three", "one"):  # which share the other place
            scores(url, name)
        *_, last, done = lines
    assert done == "data: [DONE]"
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "length"


def test_new_weights_take_over_without_a_process_or_a_failed_request(served) -> None:
    settings, url, directory = served
    before = replicas()
    with Load(f"{url}/v2/models/one/infer", BODY) as asked:
        asked.goes_on()
        assert put(settings, "tone/2", "one").version == "tone/2"
        asked.goes_on()
        np.testing.assert_allclose(scores(url, "one"), expected_scores(directory, 2), rtol=1e-5)
        # One whose weights are damaged never gets a request.
        with pytest.raises(DeploymentError, match=r"could not be loaded: .*sha256"):
            put(settings, "tone/3", "one")
        assert rollback("one", settings=settings).version == "tone/1"
        asked.goes_on()
    assert asked.failed == []
    assert [one["replica_id"] for one in replicas()] == [one["replica_id"] for one in before]
    np.testing.assert_allclose(scores(url, "one"), expected_scores(directory, 1), rtol=1e-5)
    assert diff(settings=settings) == []


def test_to_replicas_of_its_own_and_back(served) -> None:
    settings, url, directory = served
    with Load(f"{url}/v2/models/two/infer", BODY) as asked:
        asked.goes_on()
        own = {"scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}}
        assert put(settings, "tone/2", "two", replicas="own", **own).shared is False
        assert [name for name in applications() if name.startswith("model-two-")]
        asked.goes_on()
        put(settings, "tone/2", "two")
        asked.goes_on()
    assert asked.failed == []
    assert set(applications()) == {app(), "maas-gateway"}
    np.testing.assert_allclose(scores(url, "two"), expected_scores(directory, 2), rtol=1e-5)


def test_one_that_cannot_be_loaded_any_more_is_a_503_and_no_other_s_concern(served) -> None:
    settings, url, _ = served
    register(settings, "gone", IMAGES, served[2] / "gone", seed=9, alias=None)
    put(settings, "gone/1", "gone")
    for name in ("one", "two"):
        scores(url, name)  # it made room
    record = Endpoints(settings).get("gone")
    manifest = Path(record.uri) / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    try:
        for _ in range(3):
            response = httpx.post(f"{url}/v2/models/gone/infer", json=BODY, timeout=60)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "could not be loaded" in response.json()["error"]
            assert str(record.uri) not in response.text
            scores(url, "one")
    finally:
        manifest.write_text(text)
    deadline = time.monotonic() + 30
    while httpx.post(f"{url}/v2/models/gone/infer", json=BODY, timeout=60).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    undeploy("gone", settings=settings)
    assert app() in applications()


def test_an_engine_that_dies_is_loaded_anew(served) -> None:
    _, url, _ = served
    right = words(url, "lm")
    for child in psutil.Process(replicas()[0]["pid"]).children():
        if "maas_ray.serve.engines.openvino.process" in child.cmdline():
            child.kill()
    deadline = time.monotonic() + 30
    while httpx.post(f"{url}/v1/completions", json={"model": "lm", "prompt": "x", "max_tokens": 1}).status_code != 200:
        assert time.monotonic() < deadline
    assert words(url, "lm") == right


def test_a_replica_that_is_killed_is_replaced(served) -> None:
    settings, url, _ = served
    with Load(f"{url}/v2/models/three/infer", BODY) as asked:
        asked.goes_on()
        process = psutil.Process(replicas()[0]["pid"])
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        asked.goes_on()
    assert asked.failed == []
    assert diff(settings=settings) == []


def test_what_is_lost_comes_back_at_once_for_all(served) -> None:
    settings, url, directory = served
    from ray import serve

    serve.delete(app())
    assert {(one.endpoint, one.what) for one in diff(settings=settings)} == {
        (name, "missing") for name in ("one", "two", "three", "lm", "lm2")
    }
    assert {(one.endpoint, one.problem) for one in reconcile(settings=settings)} == {(app(), "")}
    np.testing.assert_allclose(scores(url, "three"), expected_scores(directory, 1), rtol=1e-5)
    assert (diff(settings=settings), reconcile(settings=settings)) == ([], [])


def test_requests_come_where_their_model_is(served) -> None:
    """With two replicas each model is loaded on one of them, and more replicas restart none."""
    settings, url, directory = served
    import ray

    def loads(name: str) -> int:
        logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs" / "serve"
        return sum(
            file.read_text().count(f"{name}, version 1, loaded in") for file in logs.glob("replica_maas-shared*")
        )

    (before,) = replicas()
    file = directory / "two.yaml"
    file.write_text("max_models: 2\nscaling: {min_replicas: 2, max_replicas: 2}\nresources: {cpus: 0.5}\n")
    more = settings.model_copy(update={"shared": str(file)})
    put(more, "tone/1", "one")  # the endpoint is as it was; the replicas are not
    assert len(replicas()) == 2
    assert before["replica_id"] in {one["replica_id"] for one in replicas()}
    scores(url, "three")
    time.sleep(2)  # it is told where the model is
    first = loads("three")
    assert first >= 1
    for _ in range(20):
        scores(url, "three")
    assert loads("three") == first
    assert [(one.endpoint, one.what) for one in diff(settings=settings)] == [(app(), "options")]
    assert {(one.endpoint, one.problem) for one in reconcile(settings=settings)} == {(app(), "")}
    assert diff(settings=settings) == []


def test_promoting_and_undeploying(served) -> None:
    settings, url, _ = served
    from maas_ray import Registry

    registry = Registry(settings)
    registry.set_alias(registry.resolve("tone/1"), "champion")
    put(settings, "tone@champion", "one")
    put(settings, "tone@champion", "three")
    assert {one.version for one in promote("tone/2", "champion", settings=settings)} == {"tone/2"}
    assert scores(url, "one") == scores(url, "three")
    for name in ("one", "two", "three", "lm"):
        undeploy(name, settings=settings)
        assert httpx.get(f"{url}/v2/models/{name}").status_code == 404
    assert app() in applications()
    undeploy("lm2", settings=settings)
    assert app() not in applications()  # nobody needs it
    put(settings, "tone/1", "one")
    assert scores(url, "one")
