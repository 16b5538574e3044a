"""gRPC of a deployed gateway, as `tritonclient.grpc` speaks it: the same answers as HTTP's, through updates too."""

import socket
import threading
import time
from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from maas_ray import DeploySpec, deploy
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register
from tests.support.deployments import reached_directly, undeploy_all, wait_until_reached

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def url(cluster: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HTTP's address; an endpoint `tint` is deployed."""
    register(settings, "tint", image_task(), tmp_path_factory.mktemp("bundle"))
    spec = {"version": "tint/1", "scaling": {"max_replicas": 1}, "resources": {"cpus": 0.5}}
    yield deploy(DeploySpec.parse(spec), settings=settings).url
    undeploy_all(settings)


@pytest.fixture
def client(url: str, settings: Settings) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{settings.grpc_port}") as client:
        yield client


def image() -> triton.InferInput:
    found = triton.InferInput("image", list(PIXELS.shape), "UINT8")
    found.set_data_from_numpy(PIXELS)
    return found


def over_http(url: str) -> dict[str, list]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": PIXELS.ravel().tolist()}
    answer = httpx.post(f"{url}/v2/models/tint/infer", json={"inputs": [tensor]}, timeout=60)
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def test_answers_are_those_of_http(url: str, client: triton.InferenceServerClient) -> None:
    expected = over_http(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tint", "1")
    described = client.get_model_metadata("tint", as_json=True)
    over_http_described = httpx.get(f"{url}/v2/models/tint").json()
    assert described["versions"] == over_http_described["versions"] == ["1"]
    assert [tensor["name"] for tensor in described["outputs"]] == [
        tensor["name"] for tensor in over_http_described["outputs"]
    ]
    answer = client.infer("tint", [image()])
    assert [label.decode() for label in answer.as_numpy("label")] == expected["label"]
    np.testing.assert_allclose(answer.as_numpy("scores").ravel(), expected["scores"], rtol=1e-5)
    for name, version, status in (("nope", "", "NOT_FOUND"), ("tint", "2", "NOT_FOUND")):
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer(name, [image()], model_version=version)
        assert caught.value.status() == f"StatusCode.{status}"
    wrong = triton.InferInput("image", [1, 2], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 2), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"inputs\[0\].shape") as caught:
        client.infer("tint", [wrong])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.usefixtures("url")
def test_it_listens_at_its_address_alone(settings: Settings) -> None:
    for host, listens in (("127.0.0.1", True), ("127.0.0.2", False)):
        with socket.socket() as probe:
            assert (probe.connect_ex((host, settings.grpc_port)) == 0) == listens


def test_a_new_gateway_takes_over_without_a_failed_call(
    url: str, client: triton.InferenceServerClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maas_ray.serve.deployment import gateway_routes
    from maas_ray.serve.deployment import serve_control as control
    from maas_ray.serve.deployment.endpoints import Endpoints

    def gateways() -> set[str]:
        deployment = control.applications()["maas-gateway"]["deployments"]["Gateway"]
        return {replica["replica_id"] for replica in deployment["replicas"]}

    failed: list[str] = []
    answered = 0
    stop = threading.Event()

    def ask_on() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                client.infer("tint", [image()], client_timeout=30)
                answered += 1
            except triton.InferenceServerException as error:
                failed.append(str(error))

    before = gateways()
    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        monkeypatch.setattr(gateway_routes, "code_version", lambda: "another")
        gateway_routes.apply_gateway(Endpoints(settings), settings)
        deadline = time.monotonic() + 90
        while gateways() & before:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        stop.set()
        asking.join(60)
    assert not failed
    assert answered > 20
    over_http(url)


def test_a_port_that_somebody_has_is_said_and_http_goes_on(
    url: str, client: triton.InferenceServerClient, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    from maas_ray.serve.deployment import gateway_routes
    from maas_ray.serve.deployment.endpoints import Endpoints

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        gateway_routes.apply_gateway(Endpoints(settings), settings.model_copy(update={"grpc_port": taken}))
        assert f"gRPC cannot listen at 127.0.0.1:{taken}" in "".join(capsys.readouterr())
        over_http(url)
    for port in (0, settings.grpc_port):
        gateway_routes.apply_gateway(Endpoints(settings), settings.model_copy(update={"grpc_port": port}))
        assert "gRPC" not in "".join(capsys.readouterr())
    assert client.is_server_live(client_timeout=20)


def test_a_body_of_a_gigabyte_is_refused_and_costs_the_gateway_no_memory(url: str, settings: Settings) -> None:
    from maas_ray.serve.deployment import serve_control as control

    (replica,) = control.applications()["maas-gateway"]["deployments"]["Gateway"]["replicas"]
    gateway = psutil.Process(replica["pid"])
    before = most = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.02):
            most = max(most, gateway.memory_info().rss)

    def gigabyte() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(1_000_000)

    def refused(headers: dict[str, str]) -> None:
        answer = httpx.post(f"{url}/v2/models/tint/infer", content=gigabyte(), headers=headers, timeout=60)
        assert answer.status_code == 413

    def refused_by_grpc() -> None:
        large = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}", options=large) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError, match="larger than max") as caught:
                ask(bytes(10**9))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for ask in (lambda: refused({}), lambda: refused({"content-length": str(10**9)}), refused_by_grpc):
            for _ in range(5):
                wait_until_reached("maas-gateway")
                before = most = gateway.memory_info().rss
                ask()
                grown = most - before
                if reached_directly("maas-gateway"):
                    break
            assert grown < 150_000_000  # some sixteen megabytes, a few times over
    finally:
        stop.set()
        watching.join(10)
    over_http(url)
