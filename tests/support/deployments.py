"""Helpers of tests that deploy. Serve keeps running between modules, because ending it takes half a minute."""

import csv
import os
import socket
import time
from pathlib import Path

from maas_ray import endpoints, undeploy
from maas_ray.settings import Settings


def undeploy_all(settings: Settings) -> None:
    """Take every endpoint down, and the shared replicas, which have options of their own."""
    from maas_ray.serve.deployment import serve_control as control
    from maas_ray.serve.deployment.endpoints import Endpoints
    from maas_ray.serve.deployment.ownership import shared_app

    for endpoint in endpoints(settings=settings):
        undeploy(endpoint.name, settings=settings)
    control.delete([shared_app(Endpoints(settings).platform)])


def wait_until_reached(application: str) -> None:
    """Return when `reached_directly`, at most a minute later."""
    deadline = time.monotonic() + 60
    while not reached_directly(application):
        assert time.monotonic() < deadline, f"HAProxy sends nothing to replicas of {application}"
        time.sleep(0.1)


def reached_directly(application: str) -> bool:
    """HAProxy sends requests to a replica of the application itself.

    While it believes that no replica is up, it sends them to Serve's own proxy, which passes them on as Ray objects.
    That happens for a moment when a replica starts, and when a loaded machine answers its health checks late.
    """
    path = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    (path,) = path.parent.glob(f"*/{path.name}")  # in a directory of its machine
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"show stat\n")
        with connection.makefile(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    return any(
        application in row["# pxname"] and row["type"] == "2" and row["bck"] == "0" and row["status"].startswith("UP")
        for row in rows
    )
