"""Ray Serve, from a driver: start it, submit applications, wait for them, delete them.

Knows nothing of endpoints.
"""

import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from maas_ray import cluster
from maas_ray.errors import ClusterError, DeploymentError
from maas_ray.ray_private.serve import client, delete_in_background, finish
from maas_ray.serve.spec import MAX_TIMEOUT_S
from maas_ray.terminal.lines import duration, say

if TYPE_CHECKING:
    from ray.serve import Application

    from maas_ray.settings import Settings

_POLL_SECONDS = 0.3
_PROXY_SECONDS = 60.0
_DELETE_SECONDS = 120.0
_BEGIN_SECONDS = 10.0
_ASK_SECONDS = 60.0
_PLACEMENT_SECONDS, _NODE_SECONDS = 60.0, 900.0
_NODE_GROUP = "ray.io/node-group"  # `ray up`, KubeRay and Ray's other autoscalers label their nodes with it
_HEAD = "node:__internal_head__"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the gateway is this machine's


@dataclass(frozen=True)
class Progress:
    """Progress of an application.

    Args:
        running, wanted: replicas that run, and that shall run.
        note: the reason for waiting, in words.
        going: replicas that start, stop or get new options now, without waiting for resources.
    """

    running: int
    wanted: int
    note: str
    going: int


def connected(settings: "Settings") -> bool:
    """Connect to the cluster that runs. False: none does."""
    with suppress(ClusterError):
        cluster.connect(settings, start=False)
        return True
    return False


def start(settings: "Settings") -> str:
    """Start Serve on the connected cluster, unless it runs.

    Returns:
        The URL that it listens at.

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
            # The gateway enforces each model's own timeout. This one is for a gateway that cannot answer at all.
            "request_timeout_s": MAX_TIMEOUT_S + 60,
        }
        try:
            serve.start(http_options=options)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise DeploymentError(
                f"Ray Serve did not start: {str(error).strip().splitlines()[-1]}", code="serve_start_failed"
            ) from error
    return _url()


def running() -> bool:
    """True if Serve runs on the connected cluster."""
    return client() is not None


def submit(
    application: "Application", name: str, *, version: str, route_prefix: str | None, user_code: bool = True
) -> None:
    """Make this the target state of the application `name`. Returns before the state is reached.

    Args:
        application: the application.
        name: its name.
        version: version of its code. Replicas of the same version stay and get new options.
        route_prefix: path prefix of its ingress. None: it has no path.
        user_code: it loads bundles, which may contain code.
    """
    from ray import serve

    finish(application, version=version, runtime_env=cluster.replica_runtime_env(user_code=user_code))
    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)


def applications() -> dict[str, Any]:
    """Every application as Serve's REST API reports it, by name. Empty: Serve does not run."""
    serving = client()
    found: dict[str, Any] = serving.get_serve_details()["applications"] if serving else {}
    return found


def placement_timeout(requested: float | None) -> float:
    """Longest wait for free resources, seconds: as requested, or long enough for a node to start if one may."""
    return requested or (_NODE_SECONDS if _nodes_on_demand() else _PLACEMENT_SECONDS)


def _nodes_on_demand() -> bool:
    """True if an autoscaler may start nodes on the connected cluster."""
    import ray

    return any(_NODE_GROUP in (node.get("Labels") or {}) for node in ray.nodes() if node["Alive"])


def wait(
    name: str,
    *,
    placement_timeout_s: float | None,
    startup_timeout_s: float,
    report: Callable[[Progress], None],
    enough: int | None = None,
    surplus_timeout_s: float | None = 0.0,
) -> None:
    """Wait until an application runs as submitted.

    Args:
        name: the application.
        placement_timeout_s: longest wait for free resources on the cluster. None: see `placement_timeout`.
        startup_timeout_s: longest time to load, once the resources are free.
        report: called with the progress, several times a second.
        enough: replicas that suffice if there is no room for all that Serve wants. None: all of them.
        surplus_timeout_s: longest wait for resources of further ones. None: as long as for the first.

    Raises:
        DeploymentError: it failed, or a timeout has passed.
    """
    room_s = placement_timeout(placement_timeout_s)
    surplus_s = room_s if surplus_timeout_s is None else surplus_timeout_s
    began = placed = time.monotonic()
    while True:
        found = applications().get(name)
        if found is None:
            raise DeploymentError(f"{name} was deleted while it was starting.", code="application_deleted")
        if found["status"] == "RUNNING":
            return
        if found["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise DeploymentError(_failure(found), code="application_failed")
        unplaced, progress = _progress(found)
        if unplaced and room_s >= _NODE_SECONDS:
            progress = replace(progress, note=f"{progress.note}; waiting up to {duration(room_s)} for a node")
        report(progress)
        now = time.monotonic()
        if not unplaced:
            began = now
        else:
            placed = now
        settled = enough is not None and progress.running >= enough and not progress.going
        if settled and now - began > surplus_s:
            say(f"{name}: {progress.running} of {progress.wanted} replicas run; {progress.note}")
            return
        if now - began > room_s:
            raise DeploymentError(
                f"the cluster had no free resources for a replica within {room_s:g} s: "
                f"{progress.note.removeprefix('no room; ')}. Request less (`resources`, `scaling.min_replicas`), "
                "undeploy an endpoint, or add nodes. If there is room for one version only, set strategy: recreate.",
                code="no_room",
            )
        if now - placed > startup_timeout_s:
            raise DeploymentError(
                f"{name} did not start within {startup_timeout_s:g} s ({progress.note}). Raise startup_timeout_s if it "
                "needs longer. The replica's log is in the dashboard under Serve.",
                code="startup_timeout",
            )
        time.sleep(_POLL_SECONDS)


def ask(name: str, method: str, *, shared: str = "", timeout_s: float = _ASK_SECONDS) -> Any:
    """Call a method of a running application's ingress.

    Args:
        name: the application.
        method: the method, which has no arguments.
        shared: the model that is meant, if the application has several (`Target.shared`).
        timeout_s: longest wait.

    Raises:
        DeploymentError: it does not answer, or the method raised this error.
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
            raise DeploymentError(cause.message, code=cause.code) from error
        why = str(error) or f"no answer within {timeout_s:g} s"
        raise DeploymentError(f"{name} runs, but does not answer: {why}", code="application_silent") from error


def wait_for_http(url: str, expected: bytes = b"") -> None:
    """Wait until a URL of the gateway answers, with `expected` in the answer.

    Raises:
        DeploymentError: it does not.
    """
    if not _on_head():
        return  # on another node the address may mean another machine
    deadline = time.monotonic() + _PROXY_SECONDS
    while True:
        found: Any = None
        try:
            with _OPENER.open(url, timeout=5) as answer:
                found = answer.read()
            if expected in found:
                return
        except (urllib.error.URLError, OSError) as error:
            found = error
        if time.monotonic() > deadline:
            raise DeploymentError(f"{url} does not answer as expected: {found}", code="gateway_silent")
        time.sleep(_POLL_SECONDS)


def delete(names: list[str]) -> None:
    """Begin to delete those applications that exist. They finish their requests first."""
    going = set(names) & set(applications())
    for name in going:
        delete_in_background(name)
    # Serve has only noted the request. A new application of that name must not be submitted before it acts on it.
    deadline = time.monotonic() + _BEGIN_SECONDS
    while going and time.monotonic() < deadline:
        now = applications()
        going = {name for name in going if now.get(name, {}).get("status", "DELETING") != "DELETING"}
        if going:
            time.sleep(_POLL_SECONDS)


def wait_until_gone(name: str, request_timeout_s: float = 0.0) -> None:
    """Wait until an application that is being deleted is gone, so that its name or its resources can be used again.

    Args:
        name: the application.
        request_timeout_s: longest time that it may take for its last requests.

    Raises:
        DeploymentError: it still exists.
    """
    limit = _DELETE_SECONDS + request_timeout_s
    deadline = time.monotonic() + limit
    while applications().get(name, {}).get("status") == "DELETING":
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"{name} is still working on its last requests after {limit:g} s.", code="delete_timeout"
            )
        time.sleep(_POLL_SECONDS)


def _url() -> str:
    options = client().http_config
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", None) else options.host  # noqa: S104  compared, not bound
    return f"http://{host}:{options.port}"


def host() -> str:
    """The address that the running Serve listens on."""
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
                "program has that port; set MAAS_HTTP_PORT to a free one.",
                code="port_taken",
            ) from error


def _progress(found: dict[str, Any]) -> tuple[bool, Progress]:
    """True if a replica waits for resources; and the application's progress."""
    deployments = found["deployments"].values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    running = sum(replica["state"] == "RUNNING" for replica in replicas)
    wanted = sum(deployment["target_num_replicas"] for deployment in deployments)
    starting = [replica for replica in replicas if replica["state"] == "STARTING"]
    unplaced = sum(replica.get("node_id") is None for replica in starting)
    going = len(replicas) - running - unplaced
    if not unplaced:
        return False, Progress(running, wanted, "loading" if starting else "waiting for Serve", going)
    first = next(iter(deployments))
    short = _shortage(first.get("required_resources", {}))
    options = first.get("deployment_config", {}).get("ray_actor_options") or {}
    if labels := options.get("label_selector"):
        short = "; ".join(filter(None, [short, f"its node must have the labels {labels}"]))
    return True, Progress(running, wanted, f"no room; {short}" if short else "starting", going)


def _shortage(required: dict[str, float]) -> str:
    """The resources that one more replica lacks, in words. Empty: it lacks none."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return "; ".join(
        f"{name}: a replica needs {amount:g}, the cluster has {total.get(name, 0):g}, {free.get(name, 0):g} of it free"
        for name, amount in required.items()
        if amount > free.get(name, 0)
    )


def _failure(found: dict[str, Any]) -> str:
    """The last error of a failed application, in its own words."""
    messages = [deployment["message"] for deployment in found["deployments"].values()] + [found["message"]]
    message = next((message for message in messages if message), "Serve reports no reason")
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if "Traceback" in message else " ".join(lines)
