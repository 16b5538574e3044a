"""Serve, from a driver: start it, submit applications, watch them come up, delete them.

Knows nothing of endpoints.
"""

import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maas_ray import cluster
from maas_ray.errors import ClusterError, DeploymentError
from maas_ray.ray_private.serve import client, delete_in_background, set_code_version
from maas_ray.serve.spec import MAX_TIMEOUT_S

if TYPE_CHECKING:
    from ray.serve import Application

    from maas_ray.settings import Settings

_POLL_SECONDS = 0.3
_PROXY_SECONDS = 60.0
_DELETE_SECONDS = 120.0
_BEGIN_SECONDS = 10.0
_ASK_SECONDS = 60.0
_HEAD = "node:__internal_head__"


@dataclass(frozen=True)
class Progress:
    """Where an application stands: replicas `running` of `wanted`, and in words what is awaited."""

    running: int
    wanted: int
    note: str


def connected(settings: "Settings") -> bool:
    """Connect to the cluster that runs. False: none does."""
    with suppress(ClusterError):
        cluster.connect(settings, start=False)
        return True
    return False


def start(settings: "Settings") -> str:
    """Start Serve on the connected cluster, or find it running.

    Returns:
        The URL it listens at, which is the running one's where it runs already.

    Raises:
        DeploymentError: the port is taken.
    """
    from ray import serve
    from ray.exceptions import RayError

    if not settings.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if client() is None:
        _check_port(settings)
        options = {
            "host": settings.http_host,
            "port": settings.http_port,
            # The gateway keeps each model's own timeout, and says so in the API's shape; this is for a
            # gateway that cannot answer at all.
            "request_timeout_s": MAX_TIMEOUT_S + 60,
        }
        try:
            serve.start(http_options=options)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise DeploymentError(f"Ray Serve did not start: {str(error).strip().splitlines()[-1]}") from error
    return _url()


def running() -> bool:
    """True if Serve runs on the connected cluster."""
    return client() is not None


def submit(application: "Application", name: str, *, version: str, route_prefix: str | None) -> None:
    """Make this the target of the application `name`; returns before it is reached.

    Args:
        application: what to run.
        name: under which name.
        version: replicas that run the same version stay, and are told of new options.
        route_prefix: where its ingress listens. None: it has no route.
    """
    from ray import serve

    set_code_version(application, version)
    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def applications() -> dict[str, Any]:
    """Every application as Serve's REST API gives it, by name; empty where Serve does not run."""
    serving = client()
    found: dict[str, Any] = serving.get_serve_details()["applications"] if serving else {}
    return found


def wait(
    name: str, *, placement_timeout_s: float, startup_timeout_s: float, report: Callable[[Progress], None]
) -> None:
    """Return when an application runs as submitted.

    Args:
        name: the application.
        placement_timeout_s: longest wait for room on the cluster.
        startup_timeout_s: longest that loading may take once there is room.
        report: told of progress, often.

    Raises:
        DeploymentError: it failed, or took too long; says of what.
    """
    began = placed = time.monotonic()
    while True:
        found = applications().get(name)
        if found is None:
            raise DeploymentError(f"{name} disappeared: somebody deleted it while it was coming up.")
        if found["status"] == "RUNNING":
            return
        if found["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise DeploymentError(_failure(found))
        unplaced, progress = _progress(found)
        report(progress)
        now = time.monotonic()
        if not unplaced:
            began = now
        else:
            placed = now
        if now - began > placement_timeout_s:
            raise DeploymentError(
                f"a replica found no room on the cluster within {placement_timeout_s:g} s: "
                f"{progress.note.removeprefix('no room; ')}. Ask for less (`resources`, `scaling.min_replicas`), "
                "undeploy something, or add nodes."
            )
        if now - placed > startup_timeout_s:
            raise DeploymentError(
                f"it did not come up within {startup_timeout_s:g} s ({progress.note}). Raise startup_timeout_s if it "
                "only needs longer; the replica's log is in the dashboard under Serve."
            )
        time.sleep(_POLL_SECONDS)


def ask(name: str, method: str, *, shared: str = "", timeout_s: float = _ASK_SECONDS) -> Any:
    """What a method of a running application's ingress returns.

    Args:
        name: the application.
        method: takes no argument.
        shared: for which model, where it has several (`Target.shared`).
        timeout_s: longest wait.

    Raises:
        DeploymentError: it does not answer; or what it raised itself.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    handle = serve.get_app_handle(name).options(method_name=method, multiplexed_model_id=shared)
    try:
        return handle.remote().result(timeout_s=timeout_s)
    except (RayError, RayServeException, TimeoutError) as error:
        cause = getattr(error, "cause", None)  # Ray wraps what a replica raised
        if isinstance(cause, DeploymentError):
            raise DeploymentError(cause.message) from error
        why = str(error) or f"no answer within {timeout_s:g} s"
        raise DeploymentError(f"{name} runs, but does not answer: {why}") from error


def wait_for_http(url: str, expected: bytes = b"") -> None:
    """Return when a URL of the gateway's is answered, with `expected` in it.

    Raises:
        DeploymentError: it is not.
    """
    if not _on_head():
        return  # from elsewhere the address may mean another machine
    deadline = time.monotonic() + _PROXY_SECONDS
    while True:
        found: Any = None
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  http, from settings
                found = answer.read()
            if expected in found:
                return
        except (urllib.error.URLError, OSError) as error:
            found = error
        if time.monotonic() > deadline:
            raise DeploymentError(f"{url} does not answer as it should: {found}")
        time.sleep(_POLL_SECONDS)


def delete(names: list[str]) -> None:
    """Begin to delete applications, those of them that exist; what they work on is finished first."""
    going = set(names) & set(applications())
    for name in going:
        delete_in_background(name)
    # Serve is only told so far, and who submits one of that name again must not be overtaken by it.
    deadline = time.monotonic() + _BEGIN_SECONDS
    while going and time.monotonic() < deadline:
        now = applications()
        going = {name for name in going if now.get(name, {}).get("status", "DELETING") != "DELETING"}
        if going:
            time.sleep(_POLL_SECONDS)


def wait_until_gone(name: str) -> None:
    """Return when an application that is being deleted is gone, so that its name can be used again.

    Raises:
        DeploymentError: it is still there.
    """
    deadline = time.monotonic() + _DELETE_SECONDS
    while applications().get(name, {}).get("status") == "DELETING":
        if time.monotonic() > deadline:
            raise DeploymentError(f"{name} is still working on its last requests after {_DELETE_SECONDS:g} s.")
        time.sleep(_POLL_SECONDS)


def _url() -> str:
    options = client().http_config
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", None) else options.host  # noqa: S104  compared, not bound
    return f"http://{host}:{options.port}"


def host() -> str:
    """The address that Serve, which runs, listens on."""
    address: str = client().http_config.host or "127.0.0.1"
    return address


def _on_head() -> bool:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes())


def _check_port(settings: "Settings") -> None:
    if not _on_head():
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.http_host, settings.http_port))
        except OSError as error:
            raise DeploymentError(
                f"the gateway cannot listen at {settings.http_host}:{settings.http_port}: {error.strerror}. Another "
                "program has that port; set MAAS_HTTP_PORT to a free one."
            ) from error


def _progress(found: dict[str, Any]) -> tuple[bool, Progress]:
    """Whether a replica waits for room, and how far the application is."""
    deployments = found["deployments"].values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    running = sum(replica["state"] == "RUNNING" for replica in replicas)
    wanted = sum(deployment["target_num_replicas"] for deployment in deployments)
    starting = [replica for replica in replicas if replica["state"] == "STARTING"]
    if not deployments or not any(replica.get("node_id") is None for replica in starting):
        return False, Progress(running, wanted, "loading" if starting else "waiting for Serve")
    short = _shortage(next(iter(deployments)).get("required_resources", {}))
    return True, Progress(running, wanted, f"no room; {short}" if short else "starting")


def _shortage(required: dict[str, float]) -> str:
    """Which resources are short for one more replica; empty where none is."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return "; ".join(
        f"{name}: a replica needs {amount:g}, the cluster has {total.get(name, 0):g}, {free.get(name, 0):g} of it free"
        for name, amount in required.items()
        if amount > free.get(name, 0)
    )


def _failure(found: dict[str, Any]) -> str:
    """What went wrong, in the words of whatever was raised last."""
    messages = [deployment["message"] for deployment in found["deployments"].values()] + [found["message"]]
    message = next((message for message in messages if message), "Serve does not say why")
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if "Traceback" in message else " ".join(lines)
