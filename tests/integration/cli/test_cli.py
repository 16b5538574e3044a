"""`maas up`, `down` and `status`: a cluster is started, found, shown and ended, and nothing else is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from maas_ray import cluster as clusters
from maas_ray.settings import Settings
from tests.support.commands import maas

MAIN = [sys.executable, "-c", "from maas_ray.cli import main; main()"]
CONNECT = """
import json, ray  # imported first, as a user's program might
from maas_ray import Settings
from maas_ray.cluster import connect
found = connect(Settings.from_environment(), start=False)

@ray.remote
def look():
    import os
    return os.environ["MAAS_STORAGE"], os.environ["RAY_AUTH_MODE"], os.environ["PATH"]

print(json.dumps([found.address, found.dashboard, *ray.get(look.remote())]))
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of whom nothing runs; whatever is started in it is ended."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAAS_", "RAY_"))}
    kept |= {"MAAS_HOME": str(tmp_path / "home"), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    (tmp_path / "token").write_text("abcdef9876543210" * 4)
    yield kept
    if (tmp_path / "home" / "cluster.json").exists():
        run("down", own=kept)


def run(*arguments: str, own: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*MAIN, *arguments], env=own, capture_output=True, text=True, check=False, timeout=180)


def state_of(own: dict[str, str]) -> dict[str, object]:
    document: dict[str, object] = json.loads((Path(own["MAAS_HOME"]) / "cluster.json").read_text())
    return document


def children_of(own: dict[str, str]) -> list[psutil.Process]:
    parent = psutil.Process(state_of(own)["parent"]["pid"])  # type: ignore[index]
    return [parent, *parent.children(recursive=True)]


def test_up_is_found_and_shown_and_down_ends_all_of_it(own: dict[str, str]) -> None:
    up = run("up", "--num-cpus", "3", own=own)
    assert up.returncode == 0, up.stderr
    assert up.stderr == ""
    assert [line.split(" with")[0].split(" after")[0] for line in up.stdout.splitlines()] == [
        "Starting a Ray cluster on this machine",
        "The cluster is up",
    ]
    state = state_of(own)

    again = run("up", own=own)
    assert again.stdout.startswith(f"A Ray cluster is running already at {state['address']}")
    assert state_of(own) == state

    connected = subprocess.run([sys.executable, "-c", CONNECT], env=own, capture_output=True, text=True, check=False)
    assert connected.returncode == 0, connected.stderr
    assert connected.stderr == ""
    address, dashboard, storage, auth, path = json.loads(connected.stdout)
    assert (address, dashboard) == (state["address"], state["dashboard"])
    assert (storage, auth) == (f"{own['MAAS_HOME']}/storage", "token")
    assert path.startswith(str(Path(sys.executable).parent))

    status = run("status", own=own)
    assert status.returncode == 0, status.stderr
    assert status.stderr == ""
    assert f"cluster    {address}, started by `maas up`" in status.stdout
    assert "1 node, 0/3 CPUs in use" in status.stdout
    assert "jobs       none running" in status.stdout

    processes = children_of(own)
    listening = [
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}

    down = run("down", own=own)
    assert down.stdout.startswith(f"ended the Ray cluster at {address} (process {processes[0].pid}, ")
    assert not [process for process in processes if process.is_running()]
    nothing, unknown = maas(["down"], ["status"], environment=own)
    assert nothing.out == "nothing to stop: maas started no cluster here.\n"
    assert "not running" in unknown.out


def test_a_killed_parent_leaves_nothing_behind(own: dict[str, str]) -> None:
    assert run("up", own=own).returncode == 0
    processes = children_of(own)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait(10)

    status, _ = maas(["status"], ["down"], environment=own)

    assert "not running" in status.out
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_cluster_that_cannot_start_says_why(own: dict[str, str]) -> None:
    started = time.monotonic()
    failed = run("up", own=own | {"RAY_START_HOOK": "no.such.hook"})

    assert failed.returncode == 1
    assert "Ray did not start (exit status 1)" in failed.stderr
    assert "No module named 'no'" in failed.stderr
    assert time.monotonic() - started < 60
    unknown = run("up", own=own | {"RAY_AUTH_MODE": "tokn"})
    assert (unknown.returncode, "RAY_AUTH_MODE" in unknown.stderr, "'tokn'" in unknown.stderr) == (2, True, True)
    assert not (Path(own["MAAS_HOME"]) / "cluster.json").exists()


def test_down_spares_a_process_that_merely_has_the_number(own: dict[str, str]) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        home = Path(own["MAAS_HOME"])
        home.mkdir()
        process = {"pid": bystander.pid, "started": psutil.Process(bystander.pid).create_time() - 100}
        recorded = {"address": "127.0.0.1:1", "dashboard": "", "auth": "token", "temp_dir": "", "log": ""}
        (home / "cluster.json").write_text(json.dumps({**recorded, "parent": process, "children": [process]}))

        status, down = maas(["status"], ["down"], environment=own)
        assert "not running" in status.out
        assert down.out == "the cluster at 127.0.0.1:1 was gone already\n"
        assert bystander.poll() is None
        assert not (home / "cluster.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "RAY_ADDRESS is 127.0.0.1:9"),
        ("http://127.0.0.1:8265", "`ray job submit "),
        ("nonsense", "RAY_ADDRESS is nonsense"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_at_once(own: dict[str, str], address: str, message: str) -> None:
    started = time.monotonic()
    done = run("status", own=own | {"RAY_ADDRESS": address})

    assert done.returncode == 1
    assert message in done.stderr
    assert time.monotonic() - started < 20


def test_connecting_joins_the_cluster_of_this_process(cluster: str, settings: Settings) -> None:
    assert clusters.connect(settings).address == cluster


def test_another_program_joins_by_ray_address_and_without_noise(cluster: str, settings: Settings) -> None:
    done = subprocess.run([sys.executable, "-c", CONNECT], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    address, _, storage, _, _ = json.loads(done.stdout)
    assert (address, storage) == (cluster, settings.storage)


def test_looking_does_not_start_a_cluster(own: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("MAAS_", "RAY_")):
                patch.delenv(name)
        assert clusters.find(Settings.from_environment(own)) is None
    assert [ended.status for ended in maas(["status"], ["endpoints"], ["models"], environment=own)] == [0, 0, 0]
    assert not (Path(own["MAAS_HOME"]) / "cluster.json").exists()
