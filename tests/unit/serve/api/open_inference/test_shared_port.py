"""Replicas share the gRPC port: one follows another without a failed call, and other programs keep theirs."""

import socket
import threading
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from maas_ray.cluster import free_ports
from maas_ray.serve.api.open_inference.shared_port import Address
from tests.support.grpc_servers import Here, listens, soon, stub, typed


@pytest.mark.usefixtures("short")
def test_replicas_share_a_port_and_one_takes_over_from_the_other(here: Here, port: int) -> None:
    """As in an update of the gateway: no call fails while one server follows another."""
    failed: list[str] = []
    answered = 0
    stop = threading.Event()

    def ask_on(calls: float) -> None:
        nonlocal answered
        while not stop.is_set():
            with stub(port) as ask:
                done = 0
                while done < calls and not stop.is_set():
                    done += 1
                    try:
                        ask.ModelInfer(typed(), timeout=10)
                        answered += 1
                    except grpc.RpcError as error:
                        failed.append(f"{error.code()}: {error.details()}")

    servers = [here.server(port)]
    # Over connections that are kept, and over a new one every few calls.
    asking = [threading.Thread(target=ask_on, args=[calls]) for calls in (np.inf, np.inf, 3)]
    for one in asking:
        one.start()
    try:
        for _ in range(5):
            servers.append(here.server(port))
            assert not servers[-1].problem
            time.sleep(0.1)
            here.do(servers[-2].close())
    finally:
        stop.set()
        for one in asking:
            one.join(30)
    assert not failed
    assert answered > 100


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_another_program_has_is_left_to_it_until_it_is_free(here: Here, port: int, shares: bool) -> None:
    with socket.socket() as other:
        if shares:  # as gRPC's own servers do, by default
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        server = here.server(port)
        for named in (f"127.0.0.1:{port}", "Address already in use", "MAAS_GRPC_PORT"):
            assert named in server.problem
    soon(lambda: not server.problem)
    with stub(port) as ask:
        assert ask.ServerLive(service_pb2.ServerLiveRequest()).live


@pytest.mark.usefixtures("short")
def test_two_clusters_of_one_user_do_not_share_a_port(here: Here, port: int) -> None:
    first, second = here.server(port, "one"), here.server(port, "two")
    assert not first.problem
    assert "Another cluster of this user" in second.problem
    with stub(port) as ask:
        here.do(first.close())
        soon(lambda: not second.problem)
        assert ask.ServerLive(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=5).live
    assert "Another cluster of this user" in here.server(port, "one").problem


@pytest.mark.usefixtures("short")
def test_the_grpc_server_moves_to_another_port_and_to_none(here: Here) -> None:
    before, after = free_ports(2)
    server = here.server(before)
    with stub(before) as ask:
        asking = ask.ModelInfer.future(typed(word={"bytes_contents": [b"wait0.5"]}))
        time.sleep(0.2)
        here.do(server.listen(Address("127.0.0.1", after)))
        assert list(asking.result(5).outputs[0].contents.fp32_contents) == [3]
    with stub(after) as ask:
        assert ask.ServerLive(service_pb2.ServerLiveRequest()).live
        here.do(server.listen(None))
        soon(lambda: not listens(after))
    assert not listens(before)


def test_an_address_is_written_as_grpc_takes_it() -> None:
    assert [str(Address("127.0.0.1", 1)), str(Address("::1", 2))] == ["127.0.0.1:1", "[::1]:2"]
