"""HAProxy itself, as `maas up` sets it up: it gives slow clients up, and never an answer when it reloads.

Clients whose bodies are refused get to read that, through it too.
"""

import re
import socket
import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import requests
import uvicorn

from maas_ray.cluster.haproxy import MAX_ANSWER_SECONDS, REQUEST_SECONDS
from maas_ray.cluster.ports import free_ports
from maas_ray.serve.api.app import create_app
from maas_ray.serve.spec import MAX_TIMEOUT_S
from tests.support.echo import EchoAndSums
from tests.support.haproxy import HaProxy, running, write_configuration

LIMIT_S = 1  # in place of the half minute in which a request must arrive
STREAM_S = 2.0
NAMES = ("a", "ab", "a-b", "a.b")


class Replica(socketserver.ThreadingTCPServer):
    """Answers with the headers that it got, slowly at `/stream`, and not at all at `/die`."""

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.requests: list[tuple[str, dict[str, str]]] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Answer(socketserver.StreamRequestHandler):
    server: Replica

    def handle(self) -> None:
        with suppress(OSError):  # HAProxy resets the connections of its health checks
            self._answer()

    def _answer(self) -> None:
        while line := self.rfile.readline():
            path = line.split()[1].decode()
            headers = {}
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            self.rfile.read(int(headers.get("content-length", 0)))
            if path != "/-/healthz":
                self.server.requests.append((path, headers))
            if path == "/die":
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(10 if path == "/stream" else 1):
                self.wfile.write(b"1\r\nx\r\n")
                if path == "/stream":
                    time.sleep(STREAM_S / 10)
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    with Replica() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def own() -> Iterator[dict[str, Replica]]:
    """Replicas of models that answer themselves."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Replica()) for name in NAMES}
        yield servers
        for server in servers.values():
            server.shutdown()


@pytest.fixture(scope="module")
def configuration(
    replica: Replica, own: dict[str, Replica], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str]:
    models = {f"/v2/models/{name}": server.server_address[1] for name, server in own.items()}
    # The directory's path is short: HAProxy's sockets lie in it.
    path, port = write_configuration(tmp_path_factory.getbasetemp() / "h", [replica.server_address[1]], models)
    text = path.read_text()
    assert f"timeout http-request {REQUEST_SECONDS}s" in text
    return path, port, text.replace(f"timeout http-request {REQUEST_SECONDS}s", f"timeout http-request {LIMIT_S}s")


@pytest.fixture
def proxy(configuration: tuple[Path, int, str]) -> Iterator[HaProxy]:
    path, port, text = configuration
    path.write_text(text)
    with running(path, port) as started:
        wait_for_replica(started)
        yield started


def wait_for_replica(proxy: HaProxy, path: str = "/up") -> None:
    deadline = time.monotonic() + 10
    while httpx.get(proxy.url + path).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_slow_clients_are_given_up_while_others_are_answered(proxy: HaProxy) -> None:
    begins = [
        b"",
        b"POST / HTT",
        b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{",
    ]
    with ExitStack() as stack:
        slow = []
        for begin in begins * 40:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=LIMIT_S + 2))
            client.sendall(begin)
            slow.append(client)
        for client in slow[1:5]:  # a byte now and then changes nothing
            threading.Timer(LIMIT_S / 2, client.sendall, [b"1"]).start()
        assert httpx.get(f"{proxy.url}/x").text == "x"
        answers = []
        for client in slow:
            answer = b""
            while piece := client.recv(1000):
                answer += piece
            answers.append(answer.split(b"\r\n")[0])
    assert set(answers) == {b"HTTP/1.1 408 Request Time-out"}


def test_answers_outlive_reloads(proxy: HaProxy, configuration: tuple[Path, int, str]) -> None:
    path, _, text = configuration
    assert MAX_ANSWER_SECONDS >= MAX_TIMEOUT_S + 60
    limit = f"hard-stop-after {MAX_ANSWER_SECONDS}s"
    assert limit in text
    with httpx.stream("GET", f"{proxy.url}/stream") as answer:
        for _ in range(5):
            proxy.reload()
        assert answer.read() == b"x" * 10
    path.write_text(text.replace(limit, "hard-stop-after 1s"))
    proxy.reload()
    with httpx.stream("GET", f"{proxy.url}/stream") as answer:
        proxy.reload()
        with pytest.raises(httpx.RemoteProtocolError):  # the limit is what cuts answers
            answer.read()


def test_idle_connections_leave_a_replaced_process_before_its_replicas_do(proxy: HaProxy) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.get(f"{proxy.url}/x").status_code == 200
            proxy.reload()
            assert client.get(f"{proxy.url}/x").status_code == 200  # on the kept connection, or on a new one
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=6) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
        assert client.recv(1000)
        proxy.reload()
        started = time.monotonic()
        while client.recv(1000):
            pass
        assert time.monotonic() - started < 5


def test_a_request_has_one_id_that_the_client_cannot_choose(proxy: HaProxy, replica: Replica) -> None:
    replica.requests.clear()
    httpx.get(f"{proxy.url}/die", headers={"x-request-id": "mine"})
    httpx.get(f"{proxy.url}/x", headers={"x-request-id": "mine", "x-client-request-id": "other"})
    *tries, last = (headers for _, headers in replica.requests)
    first = tries[0]
    assert [headers["x-request-id"] for headers in tries] == [first["x-request-id"]] * 3  # and is retried no further
    assert last["x-request-id"] != first["x-request-id"]
    assert {len(headers["x-request-id"]) for headers in (first, last)} == {36}
    assert (first["x-client-request-id"], last["x-client-request-id"]) == ("mine", "other")


def test_serve_takes_no_orders_from_clients(proxy: HaProxy, replica: Replica) -> None:
    from ray.serve._private import constants

    orders = {
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER: "-1",
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER: "?1",
        constants.SERVE_MULTIPLEXED_MODEL_ID: "other",
        constants.SERVE_MULTIPLEXED_MODEL_ID.replace("_", "-").title(): "other",
        constants.SERVE_SESSION_ID: "s",
        f"{constants.SERVE_INGRESS_ROUTER_HEADER_PREFIX}target": "r",
    }
    httpx.get(f"{proxy.url}/x", headers={**orders, "traceparent": "00-ab-cd-01"})
    got = replica.requests[-1][1]
    assert set(got) == {"host", "accept", "accept-encoding", "user-agent", "traceparent", "x-request-id"}


def test_metrics_and_statistics_move_to_loopback(configuration: tuple[Path, int, str]) -> None:
    path, port, text = configuration
    opened = re.findall(r"bind [*]?:(\d+)$", text, re.MULTILINE)
    assert len(opened) == 2
    with running(path, port):
        bound = re.findall(r"bind (\S+)", path.read_text())
    assert bound == [f"127.0.0.1:{one}" for one in (opened[0], port, opened[1])]


def test_a_models_own_url_leads_to_its_own_replicas(proxy: HaProxy, replica: Replica, own: dict[str, Replica]) -> None:
    for name in own:
        wait_for_replica(proxy, f"/v2/models/{name}/up")
    proxy.reload()
    for name in (*NAMES, "A", "abc", "b", "a:fr", "models"):  # the gateway answers for those without an application
        found = own.get(name, replica)
        found.requests.clear()
        tails = ["/v1/chat/completions", "/v1/models?a=/models/x", "/v2/models/x/infer", "/v1", "/v2"]
        for tail in tails:
            assert httpx.post(f"{proxy.url}/models/{name}{tail}", content=b"x").status_code == 200
        httpx.get(f"{proxy.url}/v2/models/{name}")
        assert [path for path, _ in found.requests] == [f"/v2/models/{name}{tail}" for tail in (*tails, "")]


def test_other_paths_stay_as_they_are(proxy: HaProxy, replica: Replica) -> None:
    others = ["/models", "/models/", "/models/a", "/models/a/v3", "/models/a/v1x", "/models//v1", "/x/models/a/v1"]
    replica.requests.clear()
    for path in others:
        httpx.get(proxy.url + path)
    assert [path for path, _ in replica.requests] == others


def test_strangers_are_not_told_what_runs(proxy: HaProxy) -> None:
    assert '"/v2/models/ab":' in proxy.path.read_text().replace("\\", "")  # Serve's answer, which nobody gets
    for path in ("/-/routes", "/-/ROUTES"):
        answer = httpx.get(proxy.url + path)
        assert (answer.status_code, answer.content) == (404, b"")
    assert httpx.get(f"{proxy.url}/-/healthz").status_code == 200


# --- refused uploads

UPLOAD = bytes(16_000_000)  # more than all buffers on the way hold
REFUSED = {"/v2/models/sums/infer": 429, "/v1/completions": 413}


def by_urllib(url: str) -> tuple[int, bytes]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, data=UPLOAD), timeout=10)
    return refused.value.code, refused.value.read()


def by_requests(url: str) -> tuple[int, bytes]:
    answer = requests.post(url, data=UPLOAD, timeout=10)
    return answer.status_code, answer.content


def by_httpx(url: str) -> tuple[int, bytes]:
    answer = httpx.post(url, content=UPLOAD, timeout=10)
    return answer.status_code, answer.content


@pytest.fixture
def gateways(configuration: tuple[Path, int, str], replica: Replica) -> Iterator[list[str]]:
    """URLs of the HTTP application: its own, and that of HAProxy before it. It has no memory for large bodies."""

    async def app(scope, receive, send) -> None:
        if scope["type"] == "http":
            await api(scope | {"path": scope["path"].replace("/-/healthz", "/v2")}, receive, send)

    api = create_app(EchoAndSums(), body_limit=20_000_000, text_body_limit=1_000_000, budget=1000)
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    path, front, text = configuration
    path.write_text(text.replace(f":{replica.server_address[1]} ", f":{port} "))
    try:
        with running(path, front) as proxy:
            wait_for_replica(proxy, "/v2")
            yield [f"http://127.0.0.1:{port}", proxy.url]
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_sends_everything_first_reads_its_refusal(gateways: list[str]) -> None:
    for url in gateways:
        status, body = by_urllib(url + "/v2/models/sums/infer")
        assert (status, b"too many large bodies" in body) == (429, True)


@pytest.mark.parametrize("upload", [by_requests, by_httpx])
def test_many_refused_clients_read_their_refusals(
    gateways: list[str], upload: Callable[[str], tuple[int, bytes]]
) -> None:
    urls = {url + path: status for url in gateways for path, status in REFUSED.items()}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(upload, [*urls] * 2))
    assert [status for status, _ in answers] == [*urls.values()] * 2
    assert all(body.startswith(b"{") and body.endswith(b"}") for _, body in answers)
