"""Joining a cluster. The first of these is the one that is meant:

1. the cluster that this process is connected to;
2. `RAY_ADDRESS`, which is set inside every Ray job;
3. the cluster that `maas up` started;
4. a cluster that `ray start` started on this machine;
5. a new one.
"""

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maas_ray.cluster.environment import AUTH, adopt, has_token, without_proxy, worker_environment
from maas_ray.cluster.local import up
from maas_ray.cluster.ports import answers
from maas_ray.cluster.state import Cluster, State
from maas_ray.errors import ClusterError
from maas_ray.ray_private.core import dashboard_url
from maas_ray.settings import Settings

_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def connect(settings: Settings, *, start: bool = True) -> Cluster:
    """Connect this process to the cluster that is meant. A second call costs nothing.

    Args:
        settings: handed to every worker as `MAAS_*` variables.
        start: start a cluster on this machine if there is none.

    Raises:
        ClusterError: there is none, or it does not answer.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    if not settings.verbose:
        # Training, data tasks and replicas share a small machine on purpose. Ray would warn about their number.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return Cluster(ray.get_runtime_context().gcs_address, dashboard_url(), "of this process")
    cluster = find(settings)
    if cluster is None:
        if not start:
            raise ClusterError(
                "no Ray cluster is running. Start one with `maas up`, or set RAY_ADDRESS.", code="no_cluster"
            )
        cluster = up(settings)
    _join(cluster, settings)
    dashboard = cluster.dashboard or dashboard_url()
    os.environ.update(without_proxy([cluster.address, dashboard], os.environ))
    return Cluster(cluster.address, dashboard, cluster.origin)


def find(settings: Settings) -> Cluster | None:
    """The running cluster that `connect` would join. None: it would start one.

    This process then reaches it without a proxy.

    Raises:
        ClusterError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    cluster = _find(settings)
    if cluster:
        os.environ.update(without_proxy([cluster.address, cluster.dashboard], os.environ))
    return cluster


def _find(settings: Settings) -> Cluster | None:
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "auto":
        if address.startswith(("http://", "https://")):
            raise ClusterError(
                f"RAY_ADDRESS is {address}, the address of a dashboard, which accepts jobs: `ray job submit "
                "--working-dir . -- python jobs/train.py SPEC.yaml`. To connect, set the head node's own address: "
                "RAY_ADDRESS=host:6379.",
                code="address_of_dashboard",
            )
        if not _reachable(address):
            raise ClusterError(
                f"RAY_ADDRESS is {address}, but nothing answers there. Unset it, or start the cluster.",
                code="address_silent",
            )
        return Cluster(address, "", "from RAY_ADDRESS")
    state = State.read(settings)
    if state and state.parent.running() and answers(state.address):
        adopt(state.auth, loopback=True)
        return state.cluster
    with suppress(OSError):
        address = Path("/tmp/ray/ray_current_cluster").read_text(encoding="utf-8").strip()  # noqa: S108  written by `ray start`
        if _reachable(address):
            return Cluster(address, "", "started by `ray start` on this machine")
    return None


def _reachable(address: str) -> bool:
    """True if a cluster answers at an address that the user set. This process then authenticates as it requires."""
    if "://" in address or address == "local":
        return True  # Ray Client and `ray.init` report their own errors
    auth = os.environ.get(AUTH) or ("token" if has_token() else "disabled")
    host, _, port = address.rpartition(":")
    if host in ("127.0.0.1", "localhost", "[::1]"):
        # Ray replaces loopback by this machine's own address, unless the cluster is bound to loopback.
        from ray.util import get_node_ip_address

        if not answers(f"{get_node_ip_address()}:{port}") and answers(address):
            adopt(auth, loopback=True)
            return True
        address = f"{get_node_ip_address()}:{port}"
    if not answers(address):
        return False
    adopt(auth, loopback=False)
    return True


def _join(cluster: Cluster, settings: Settings) -> None:
    import ray

    # Ray refuses a variable that the job was submitted with already, so the job's value stays.
    job = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    taken = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {name: value for name, value in worker_environment(settings).items() if name not in taken}
    try:
        with sigterm_kept(), core_worker_silent(settings.verbose):
            ray.init(
                address=cluster.address,
                runtime_env={"env_vars": variables},
                logging_level="INFO" if settings.verbose else "ERROR",
                log_to_driver=settings.verbose,
            )
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"the Ray cluster at {cluster.address} ({cluster.origin}) refused this process: {error}\n"
            f"Check that {AUTH} ({os.environ.get(AUTH, 'not set')}) and the token are those of the cluster.",
            code="cluster_refused",
        ) from error


@contextmanager
def core_worker_silent(verbose: bool) -> Iterator[None]:
    """Keep the C++ half of this process, which `ray.init` starts within, from printing, unless an error is raised.

    It prints a line for every actor that may be restarted and takes arguments by reference, as Ray Data's do. Its log
    level prevents that, but setting the level makes it print another line while it starts. Standard error is therefore
    held back meanwhile, and printed if the start fails.
    """
    if verbose or _LOG_LEVEL in os.environ or sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.environ[_LOG_LEVEL] = "fatal"
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            del os.environ[_LOG_LEVEL]
            if failed:
                held.seek(0)
                os.write(2, held.read())


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep the present handler of SIGTERM. `ray.init` installs one that prints a stack, as after a crash."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
