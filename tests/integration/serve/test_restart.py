"""Endpoints come back with a cluster that is stopped and started."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from maas_ray.cluster import free_ports
from maas_ray.settings import Settings
from tests.support.bundles import image_task, register

BODY = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [7] * 64}]}


@pytest.mark.soak
def test_endpoints_come_back_with_the_cluster(tmp_path: Path) -> None:
    """`maas down`, `maas up`: another cluster, the same endpoints."""
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "RAY_"))}
    environment |= {"MAAS_HOME": str(home), "MAAS_HTTP_PORT": str(free_ports(1)[0])}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    (tmp_path / "token").write_text("abcdef9876543210" * 4)
    register(Settings(home=str(home)), "shade", image_task(), tmp_path / "bundle")

    def maas(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", "from maas_ray.cli import main; main()", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    try:
        deployed = maas("deploy", "shade@champion")
        assert deployed.returncode == 0, deployed.stderr
        assert maas("diff").stdout == "no differences\n"
        maas("down")
        lost = maas("diff")
        assert (lost.returncode, "shade         missing" in lost.stdout) == (1, True), lost.stdout
        up = maas("up")
        assert (up.returncode, up.stderr) == (0, "")
        assert "shade serves shade/1\n" in up.stdout
        assert (maas("diff").returncode, maas("reconcile").returncode) == (0, 0)
        url = f"http://127.0.0.1:{environment['MAAS_HTTP_PORT']}/v2/models/shade/infer"
        assert httpx.post(url, json=BODY, timeout=60).status_code == 200
    finally:
        maas("down")
