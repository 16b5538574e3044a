"""The Ray cluster: joining the one that is meant, starting one on this machine, ending exactly that one.

Which cluster is meant, first match: the one this process is connected to; `RAY_ADDRESS` (set inside every
Ray job); the one `maas up` started; one that `ray start` started on this machine; else a new one.

A cluster of `maas up` is for one machine and listens on loopback only, with token authentication. What
runs is recorded in `$MAAS_HOME/cluster.json` by process id and start time, so that `down` never ends
a process that merely has the same number. Knows nothing of what runs on a cluster.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from maas_ray import storage
from maas_ray.errors import ClusterError, NotFoundError, SpecError, StorageError
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say

STATE_FILE = "cluster.json"
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_AUTH = "RAY_AUTH_MODE"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# Ray's switch for a cluster of one machine: every port is bound to loopback, by each process that has it set.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Args:
        address: what `ray.init` takes, `host:port`.
        dashboard: URL of the dashboard, which also takes jobs. Empty: none, or not known.
        origin: in a few words, whose it is.
    """

    address: str
    dashboard: str
    origin: str


@dataclass(frozen=True)
class _Process:
    """A process, for good: numbers are used again, a number with its start time is not."""

    pid: int
    started: float

    @classmethod
    def of(cls, process: psutil.Process) -> "_Process":
        return cls(process.pid, process.create_time())

    def running(self) -> psutil.Process | None:
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class _State:
    """What `cluster.json` holds of the cluster that was started here."""

    address: str
    dashboard: str
    auth: str
    temp_dir: str
    log: str
    parent: _Process
    children: tuple[_Process, ...]

    @classmethod
    def read(cls, settings: Settings) -> "_State | None":
        path = _state_path(settings)
        try:
            document = storage.read_json(path)
            parent = _Process(**document.pop("parent"))
            children = tuple(_Process(**child) for child in document.pop("children"))
            return cls(**document, parent=parent, children=children)
        except NotFoundError:
            return None
        except (StorageError, KeyError, TypeError) as error:
            raise ClusterError(f"{path} is not readable ({error}); remove it if no cluster runs.") from error

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.address, self.dashboard, "started by `maas up`")


# --- joining ---------------------------------------------------------------------------------------


def connect(settings: Settings, *, start: bool = True) -> Cluster:
    """Connect this process to the cluster that is meant; quietly, and again at no cost.

    Args:
        settings: also handed to every worker, as `MAAS_*` variables.
        start: whether to start a cluster on this machine when there is none.

    Raises:
        ClusterError: there is none, or it does not answer; says how to get one.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    if not settings.verbose:
        # Training, data tasks and replicas share a small machine on purpose; Ray would warn that many start.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return Cluster(ray.get_runtime_context().gcs_address, _dashboard(), "of this process")
    cluster = find(settings)
    if cluster is None:
        if not start:
            raise ClusterError("no Ray cluster is running. Start one with `maas up`, or set RAY_ADDRESS.")
        cluster = up(settings)
    _join(cluster, settings)
    return Cluster(cluster.address, cluster.dashboard or _dashboard(), cluster.origin)


def find(settings: Settings) -> Cluster | None:
    """The running cluster that `connect` would join, or None where it would start one.

    Raises:
        ClusterError: `RAY_ADDRESS` names one that does not answer.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "auto":
        if address.startswith(("http://", "https://")):
            raise ClusterError(
                f"RAY_ADDRESS is {address}, a dashboard, which takes jobs: `ray job submit --working-dir . -- "
                "python jobs/train.py SPEC.yaml`. To connect, give the head's own address: RAY_ADDRESS=host:6379."
            )
        if not _found(address):
            raise ClusterError(f"RAY_ADDRESS is {address}, but nothing answers there. Unset it, or start the cluster.")
        return Cluster(address, "", "from RAY_ADDRESS")
    state = _State.read(settings)
    if state and state.parent.running() and _answers(state.address):
        _speak_as(state.auth, loopback=True)
        return state.cluster
    with suppress(OSError):
        # Where `ray start` leaves the address of the cluster it started last on this machine.
        address = Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8").strip()  # noqa: S108  Ray's own
        if _found(address):
            return Cluster(address, "", "started by `ray start` on this machine")
    return None


def worker_environment(settings: Settings) -> dict[str, str]:
    """The variables every worker process needs."""
    return settings.environment() | {"RAY_TRAIN_V2_ENABLED": "1"}


def _found(address: str) -> bool:
    """Whether a cluster answers at an address that the user gave; then this process speaks as it asks."""
    if "://" in address or address == "local":
        return True  # Ray Client's, or Ray's own affair
    auth = os.environ.get(_AUTH) or ("token" if _has_token() else "disabled")
    host, _, port = address.rpartition(":")
    if host in ("127.0.0.1", "localhost", "[::1]"):
        # Ray takes loopback for this machine's own address, unless the cluster is one that is bound to loopback.
        from ray.util import get_node_ip_address

        if not _answers(f"{get_node_ip_address()}:{port}") and _answers(address):
            _speak_as(auth, loopback=True)
            return True
        address = f"{get_node_ip_address()}:{port}"
    if not _answers(address):
        return False
    _speak_as(auth, loopback=False)
    return True


def _speak_as(auth: str, *, loopback: bool) -> None:
    """Make this process speak as its cluster does: whether with a token, whether on loopback."""
    os.environ[_AUTH] = auth
    if loopback:
        os.environ.update(_LOOPBACK)
    if "ray" in sys.modules:
        # Ray has read these variables already.
        from ray._private import ray_constants
        from ray._raylet import Config  # type: ignore[attr-defined]

        ray_constants.ENABLE_RAY_CLUSTER &= not loopback
        Config.initialize("")


def _join(cluster: Cluster, settings: Settings) -> None:
    import ray

    # What the job was submitted with stands; Ray refuses to merge a variable that both set.
    job = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {name: value for name, value in worker_environment(settings).items() if name not in taken}
    try:
        with _sigterm_kept():
            ray.init(
                address=cluster.address,
                runtime_env={"env_vars": variables},
                logging_level="INFO" if settings.verbose else "ERROR",
                log_to_driver=settings.verbose,
            )
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"the Ray cluster at {cluster.address} ({cluster.origin}) refused this process: {error}\n"
            f"Check that {_AUTH} ({os.environ.get(_AUTH, 'not set')}) and the token are those of the cluster."
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Who handled SIGTERM before still does: `ray.init` takes it, and for a crash whose stack it prints."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _dashboard() -> str:
    from ray._private import worker

    url = getattr(worker._global_node, "webui_url", None)
    return f"http://{url}" if url else ""


def _answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except OSError:
        return False


def _has_token() -> bool:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(path).is_file()


# --- starting and ending ---------------------------------------------------------------------------


def up(
    settings: Settings, *, num_cpus: int | None = None, num_gpus: int | None = None, dashboard_port: int = 8265
) -> Cluster:
    """Start a cluster on this machine, or find the one that was started before.

    Args:
        settings: `home` is where the cluster is recorded.
        num_cpus: logical CPUs. None: `default_cpus()`.
        num_gpus: GPUs. None: those there are.
        dashboard_port: the first port to try for the dashboard.

    Raises:
        ClusterError: it did not start; says why and where its log lies.
    """
    with _lock(settings):
        state = _State.read(settings)
        if state and state.parent.running():
            say(f"A Ray cluster is running already at {state.address}; dashboard {state.dashboard}")
            _speak_as(state.auth, loopback=True)
            return state.cluster
        num_cpus = num_cpus or default_cpus()
        say(f"Starting a Ray cluster on this machine with {num_cpus} CPUs (it stays until `maas down`) …")
        started = time.monotonic()
        state = _start(settings, num_cpus, num_gpus, dashboard_port)
        _write_state(settings, state)
    _speak_as(state.auth, loopback=True)
    say(f"The cluster is up after {time.monotonic() - started:.0f} s. Dashboard: {state.dashboard}")
    return state.cluster


def down(settings: Settings) -> list[str]:
    """End the cluster that `up` started, and nothing else.

    Returns:
        One line for each thing that was done; empty when nothing was running.
    """
    with _lock(settings):
        state = _State.read(settings)
        if state is None:
            return []
        said = _end(state)
        Path(_state_path(settings)).unlink(missing_ok=True)
        return said


def default_cpus() -> int:
    """Logical CPUs of a cluster on this machine.

    Ray counts what tasks reserve, not what they use. Training workers, data tasks and serving replicas
    share the cores here, and on a few cores a run and a service that idles would lock each other out:
    below 8 cores each counts twice, and there are never fewer than 4.
    """
    from ray._private.utils import get_num_cpus

    cores = int(get_num_cpus())  # minds a container's quota
    return cores if cores >= 8 else max(2 * cores, 4)


def serve_environment(directory: Path) -> dict[str, str]:
    """What makes Ray Serve put HAProxy before its replicas; read when a cluster starts.

    HAProxy answers several times as many requests as Serve's own proxy (see benchmarks/). Its files and
    ports are fixed by default and would collide with another cluster's on the same machine. Serve puts 57
    characters of its own into the sockets' paths, and HAProxy takes 97 at most: keep `directory` short.

    HAProxy notices that a client has left only if the whole request had come before it chose a replica; so
    it waits for that, up to its buffer's size. Serve has no setting for it; the one before it in the file
    takes the line along.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ports = free_ports(3)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "leastconn\n    option http-buffer-request",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 * 1024),
        # A gateway that dies before it has answered at all: the request, which is still held, goes to another.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # How long a replica that is to go keeps listening, until HAProxy knows; it knows within one second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
    }


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _start(settings: Settings, num_cpus: int, num_gpus: int | None, dashboard_port: int) -> _State:
    temp_dir = _temp_dir(settings)
    log = Path(settings.home) / "ray.log"
    environment = _node_environment(settings, temp_dir)
    if environment[_AUTH] not in ("token", "disabled"):
        # Ray takes any other word for `disabled`.
        raise SpecError("environment", [f"{_AUTH}: {environment[_AUTH]!r} is not known; write token or disabled."])
    if environment[_AUTH] == "token" and not _has_token():
        # umask: Ray writes the token with the permissions any file gets.
        command = [_ray(), "get-auth-token", "--generate"]
        subprocess.run(command, check=True, capture_output=True, umask=0o077)
    dashboard_port = _first_free_port(dashboard_port)
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
    process.returncode = 0  # it outlives this process, which need not warn that it still runs
    return _State(
        address=address,
        dashboard=f"http://127.0.0.1:{dashboard_port}",
        auth=environment[_AUTH],
        temp_dir=str(temp_dir),
        log=str(log),
        parent=_Process.of(parent),
        children=tuple(_Process.of(child) for child in _descendants(parent)),
    )


def _node_environment(settings: Settings, temp_dir: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {
        **own,
        **worker_environment(settings),
        **_LOOPBACK,
        **serve_environment(temp_dir / "h"),
        _AUTH: os.environ.get(_AUTH, "token"),
        # Ray runs workers at 15, after everything else on the machine; here they are what it is for.
        "RAY_worker_niceness": "0",
        # How long an ending node waits for what runs on it. There is no other node to move anything to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "5",
        # Workers find what stands beside this interpreter, such as ninja, also without an activated environment.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}",
    }


def _await_address(process: "subprocess.Popen[bytes]", temp_dir: Path, log: Path) -> str:
    """Wait until Ray has written its address, which it does last."""
    deadline = time.monotonic() + _START_SECONDS
    path = temp_dir / "ray_current_cluster"
    while time.monotonic() < deadline:
        if path.is_file() and (address := path.read_text(encoding="utf-8").strip()):
            return address
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
            raise ClusterError(
                f"Ray did not start (exit status {process.returncode}). Its log, {log}, ends with:\n" + "\n".join(tail)
            )
        time.sleep(0.1)
    raise ClusterError(f"Ray did not start within {_START_SECONDS:.0f} s. Its log is {log}.")


def _end(state: _State) -> list[str]:
    parent = state.parent.running()
    # Taken before the first signal: afterwards nobody knows whose children they were.
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
    """Ray's directory for this home, empty. Short: Ray puts sockets in it, and their paths end at 107 bytes."""
    of_home = hashlib.sha256(settings.home.encode()).hexdigest()[:8]
    path = Path(f"/tmp/maas-{os.getuid()}-{of_home}")  # noqa: S108  owned by the user, see below
    if path.exists() and (path.is_symlink() or path.stat().st_uid != os.getuid()):
        raise ClusterError(f"{path} belongs to somebody else; remove it, or set MAAS_HOME to another directory.")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _first_free_port(port: int) -> int:
    for candidate in range(port, port + 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", candidate))
            return candidate
    raise ClusterError(f"no port is free from {port} to {port + 99}.")


def _ray() -> str:
    return str(Path(sys.executable).parent / "ray")


def _state_path(settings: Settings) -> str:
    return storage.join(settings.home, STATE_FILE)


def _write_state(settings: Settings, state: _State) -> None:
    document: dict[str, Any] = asdict(state)
    storage.write_json(_state_path(settings), document)


@contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    """One `up` or `down` at a time."""
    home = Path(settings.home)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "cluster.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
