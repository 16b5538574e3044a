"""A cluster on this machine: started on loopback with token authentication, and ended process by process."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from maas_ray.cluster.environment import AUTH, LOOPBACK, adopt, has_token, without_proxy, worker_environment
from maas_ray.cluster.haproxy import serve_environment
from maas_ray.cluster.ports import first_free_port, free_ports
from maas_ray.cluster.state import Cluster, RecordedProcess, State, exclusive
from maas_ray.errors import ClusterError, SpecError
from maas_ray.ray_private import check
from maas_ray.ray_private.core import machine_cpus
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0


def up(
    settings: Settings, *, num_cpus: int | None = None, num_gpus: int | None = None, dashboard_port: int = 8265
) -> Cluster:
    """Start a cluster on this machine, unless the one started before still runs.

    Args:
        settings: `home` is the directory that records the cluster.
        num_cpus: logical CPUs. None: `default_cpus()`.
        num_gpus: GPUs. None: all of this machine's.
        dashboard_port: the first port to try for the dashboard.

    Raises:
        ClusterError: it did not start, or the installed Ray lacks names that this package uses.
    """
    with exclusive(settings):
        state = State.read(settings)
        if state and state.parent.running():
            say(f"A Ray cluster is running already at {state.address}; dashboard {state.dashboard}")
            adopt(state.auth, loopback=True)
            return state.cluster
        _check_ray()
        num_cpus = num_cpus or default_cpus()
        say(f"Starting a Ray cluster on this machine with {num_cpus} CPUs (it stays until `maas down`) …")
        started = time.monotonic()
        state = _start(settings, num_cpus, num_gpus, dashboard_port)
        state.write(settings)
    adopt(state.auth, loopback=True)
    say(f"The cluster is up after {time.monotonic() - started:.0f} s. Dashboard: {state.dashboard}")
    return state.cluster


def down(settings: Settings) -> list[str]:
    """End the cluster that `up` started, and nothing else.

    Returns:
        One line for each action. Empty: nothing was running.
    """
    with exclusive(settings):
        state = State.read(settings)
        if state is None:
            return []
        said = _end(state)
        State.forget(settings)
        return said


def default_cpus() -> int:
    """Logical CPUs of a cluster on this machine.

    Ray counts the CPUs that tasks reserve, not those they use. Training workers, data tasks and serving replicas
    share the cores here, and on a few cores a run and an idle service would lock each other out. Below 8 cores each
    core therefore counts twice, and there are never fewer than 4 CPUs.
    """
    cores = machine_cpus()
    return cores if cores >= 8 else max(2 * cores, 4)


def _check_ray() -> None:
    """Refuse a Ray whose private names have changed, before anything fails for want of them."""
    if problems := check.problems():
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ClusterError(
            f"the installed Ray does not fit this version of maas_ray:{lines}\n{check.advice()}",
            code="ray_incompatible",
        )


def _start(settings: Settings, num_cpus: int, num_gpus: int | None, dashboard_port: int) -> State:
    temp_dir = _temp_dir(settings)
    log = Path(settings.home) / "ray.log"
    environment = _node_environment(settings, temp_dir)
    if environment[AUTH] not in ("token", "disabled"):
        # Ray would read any other word as `disabled`.
        problem = f"{AUTH}: unknown value {environment[AUTH]!r}; set it to token or disabled."
        raise SpecError("environment", [problem], code="unknown_auth_mode")
    if environment[AUTH] == "token" and not has_token():
        # The umask keeps the token private: Ray writes it with the default permissions of a file.
        command = [_ray(), "get-auth-token", "--generate"]
        subprocess.run(command, check=True, capture_output=True, umask=0o077)
    dashboard_port = first_free_port(dashboard_port)
    command = [
        *(_ray(), "start", "--head", "--block", "--port=0", f"--temp-dir={temp_dir}"),
        *(f"--num-cpus={num_cpus}", *([] if num_gpus is None else [f"--num-gpus={num_gpus}"])),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        *(f"--ray-client-server-port={free_ports(1)[0]}", "--disable-usage-stats", "--log-color=false"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    parent = psutil.Process(process.pid)
    try:
        address = _await_address(process, temp_dir, log)
    except BaseException:
        _stop([parent, *_descendants(parent)])
        raise
    process.returncode = 0  # prevents Python's warning: the cluster is meant to outlive this process
    return State(
        address=address,
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        auth=environment[AUTH],
        temp_dir=str(temp_dir),
        log=str(log),
        parent=RecordedProcess.of(parent),
        children=tuple(RecordedProcess.of(child) for child in _descendants(parent)),
    )


def _node_environment(settings: Settings, temp_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **own,
        **settings.environment(),  # for the drivers of submitted jobs
        **worker_environment(settings),
        **LOOPBACK,
        **without_proxy((), own),
        **serve_environment(temp_dir / "h"),
        AUTH: os.environ.get(AUTH, "token"),
        # Ray's default of 15 gives every other program on the machine precedence over the workers.
        "RAY_worker_niceness": "0",
        # A node that ends waits for its tasks to move. There is no other node, so the wait is short.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
        # Workers find programs beside this interpreter, such as ninja, even if its environment is not activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}",
    }


def _await_address(process: "subprocess.Popen[bytes]", temp_dir: Path, log: Path) -> str:
    """The cluster's address. Ray writes it when everything else has started."""
    deadline = time.monotonic() + _START_SECONDS
    path = temp_dir / "ray_current_cluster"
    while time.monotonic() < deadline:
        if path.is_file() and (address := path.read_text(encoding="utf-8").strip()):
            return address
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            raise ClusterError(
                f"Ray did not start (exit status {process.returncode}). Its log, {log}, ends with:\n" + "\n".join(tail),
                code="ray_start_failed",
            )
        time.sleep(0.1)
    raise ClusterError(f"Ray did not start within {_START_SECONDS:.0f} s. Its log is {log}.", code="ray_start_failed")


def _end(state: State) -> list[str]:
    parent = state.parent.running()
    # Listed before the first signal: a child of a process that has ended has another parent.
    roots = [process for recorded in (state.parent, *state.children) if (process := recorded.running())]
    family = list(dict.fromkeys([*roots, *(child for root in roots for child in _descendants(root))]))
    if not family:
        return [f"the cluster at {state.address} was gone already"]
    if parent:
        with suppress(psutil.Error):
            parent.send_signal(signal.SIGTERM)
            parent.wait(_STOP_SECONDS)
    left = [process for process in family if process.is_running()]
    _stop(left)
    said = [f"ended the Ray cluster at {state.address} (process {state.parent.pid}, {len(family)} in all)"]
    return said + [f"{len(left)} of them had to be ended one by one"] * bool(left)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _stop(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        with suppress(psutil.Error):
            process.kill()


def _temp_dir(settings: Settings) -> Path:
    """An empty directory for Ray, one for each MAAS_HOME. Its path is short, because a socket's may have 107 bytes."""
    of_home = hashlib.sha256(settings.home.encode()).hexdigest()[:8]
    path = Path(f"/tmp/maas-{os.getuid()}-{of_home}")  # noqa: S108  owned by the user, see below
    if path.exists() and (path.is_symlink() or path.stat().st_uid != os.getuid()):
        raise ClusterError(
            f"{path} belongs to another user. Remove it, or set MAAS_HOME to another directory.",
            code="directory_not_owned",
        )
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _ray() -> str:
    return str(Path(sys.executable).parent / "ray")
