"""A gRPC server on a free port, and a client of it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from maas_ray.cluster import free_ports
from maas_ray.serve.api.open_inference import grpc_server, shared_port
from tests.support.grpc_servers import Here


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(grpc_server, "_RETRY_SECONDS", 0.1)
    found = Here()
    yield found
    # Whoever is connected still is only forgotten.
    monkeypatch.setattr(grpc_server, "_CONNECTION_SECONDS", 0)
    monkeypatch.setattr(shared_port, "_TAKEN_SECONDS", 0)
    found.end()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are short."""
    monkeypatch.setattr(grpc_server, "_CONNECTION_SECONDS", 0.2)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def client(here: Here, port: int) -> Iterator[triton.InferenceServerClient]:
    assert not here.server(port).problem
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client
