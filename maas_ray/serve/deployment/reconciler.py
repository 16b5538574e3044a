"""The reconciler: one named actor that reconciles in a loop, so that a change outlives the command that began it.

The actor is detached from its driver, restarted by Ray when it dies, and holds a lease in the platform's database
while it works, so that two processes never reconcile at once. Its state is in the database, so killing it loses
nothing. `reconcile` asks it for a pass and waits; between such passes it makes unattended ones of its own.

It has the settings of whoever deployed or reconciled last: a caller with other settings replaces it.
"""

import json
import logging
import os
import queue
import socket
import threading
import time
import uuid
from concurrent.futures import Future
from typing import Any

from maas_ray import cluster
from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease
from maas_ray.errors import ClusterError, ConflictError, MaasError, SpecError
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints
from maas_ray.serve.deployment.gateway_routes import gateway_args
from maas_ray.serve.deployment.reconcile import Outcome, reconcile_once, work
from maas_ray.serve.deployment.rollout import shared_args
from maas_ray.serve.spec import DeploySpec
from maas_ray.settings import PREFIX, Settings
from maas_ray.spec import digest_of
from maas_ray.terminal.lines import duration, say
from maas_ray.version import compute_code_version

_log = logging.getLogger("maas_ray.reconciler")
_LEASE = "reconcile"
_NAMESPACE = "maas"
_HEAD = "node:__internal_head__"
_START_SECONDS = 60.0
_WAIT_SECONDS = 60.0
_SILENT_SECONDS = 3.0
_CHANGE_SECONDS = 600.0  # longest time of a change beside its spec's timeouts: deletions, smoke request, gateway
_POLL_SECONDS = 0.3
_LONGEST_PAUSE_SECONDS = 600.0


def reconcile(*, settings: Settings | None = None) -> list[Outcome]:
    """Restore the endpoints that should serve, finish changes that have begun, delete unneeded applications; once.

    The reconciler does the work. If none can be started, this process does.

    Raises:
        ClusterError: there is no cluster, and none could be started; its nodes have other code than this process; or
            the reconciler does not answer.
        ConflictError: another process is reconciling, and does not end; or another command replaced the reconciler.
        DeploymentError: the gateway cannot be started, or comes from a Serve config file.
        SpecError: the file that MAAS_SHARED names is wrong.
    """
    settings = settings or Settings.from_environment()
    if not work(settings):
        return []
    cluster.connect(settings)
    cluster.check_code()
    actor = _current(settings)
    if actor is None:
        say("no process for the reconciler could be started on the cluster; this process reconciles")
        return leased_pass(settings, wait_seconds=_WAIT_SECONDS)
    return _outcomes(actor.reconcile.remote(_portable(settings).document()), _longest_wait(settings))


def ensure(settings: Settings) -> None:
    """Have a reconciler with these settings on the connected cluster; none that loops, if they turn the loop off.

    An error is logged only, because a caller has done its own work already.
    """
    import ray

    try:
        if _outside(settings):
            return
        actor = _existing(settings)
        if settings.reconcile_seconds:
            # A new one need not be waited for.
            _current(settings) if actor else _actor(settings)
        elif actor and ray.get(actor.identity.remote(), timeout=_START_SECONDS) != _identity(settings):
            ray.kill(actor)
    except Exception as error:
        _log.warning("the reconciler could not be started or replaced; `maas reconcile` tries again: %s", error)


def leased_pass(settings: Settings, *, wait_seconds: float, unattended: bool = False) -> list[Outcome]:
    """`reconcile_once`, while this process holds the lease. Nothing is done if the database has no work.

    Raises:
        ConflictError: another process holds the lease, or this one lost it.
        MaasError: see `reconcile_once`.
    """
    if not work(settings):  # also keeps an SQLite file from being created that is on another machine
        return []
    owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"
    lease = Lease(Database(settings.database), _LEASE, owner)
    with lease.held(wait_seconds=wait_seconds):
        return reconcile_once(settings, unattended=unattended, check=lease.check)


class Reconciler:
    """The actor. One thread makes all passes, those that are requested and those of its loop.

    Args:
        document: the settings, as a document.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._settings = Settings.parse(document)
        self._code = self._installed = compute_code_version()
        self._identity = _digest(self._code, self._settings)
        self._requests: queue.SimpleQueue[Future[list[Outcome]] | None] = queue.SimpleQueue()
        self._pause = self._settings.reconcile_seconds
        threading.Thread(target=self._loop, name="reconciler", daemon=True).start()

    def identity(self) -> str:
        """Digest of the code that this process runs and of the settings that it was started with."""
        return self._identity

    def reconcile(self, document: dict[str, Any]) -> list[Outcome]:
        """Make a pass now, by these settings, which the loop goes on with."""
        self._settings = Settings.parse(document)
        request: Future[list[Outcome]] = Future()
        self._requests.put(request)
        return request.result()

    def loop_every(self, seconds: float) -> None:
        """Change the pause between unattended passes. 0: make none."""
        self._settings = self._settings.model_copy(update={"reconcile_seconds": seconds})
        self._pause = seconds
        self._requests.put(None)

    def _loop(self) -> None:
        while True:
            try:
                request = self._requests.get(timeout=self._pause or None)
            except queue.Empty:
                if not self._superseded():
                    self._unattended_pass()
                continue
            if request is None:  # the pause has changed
                continue
            try:
                request.set_result(leased_pass(self._settings, wait_seconds=_WAIT_SECONDS))
            except BaseException as error:
                request.set_exception(error)
            self._pause = self._settings.reconcile_seconds

    def _superseded(self) -> bool:
        """True if other code is installed than this process runs. It ends once an installation seems complete."""
        before = self._installed
        try:
            self._installed = compute_code_version()
        except OSError:  # a file was removed meanwhile
            self._installed = ""
            return True
        if self._installed == self._code:
            return False
        if self._installed == before:
            os._exit(0)  # Ray starts it again, with the code that is installed now
        return True

    def _unattended_pass(self) -> None:
        """A pass of the loop. While passes fail, the pause doubles up to ten minutes."""
        try:
            outcomes = leased_pass(self._settings, wait_seconds=0, unattended=True)
            failed = any(outcome.problem for outcome in outcomes)
            for outcome in outcomes:
                _log.info("%s %s %s", outcome.endpoint, outcome.done, outcome.problem)
        except ConflictError as error:
            _log.info("left to another process: %s", error)
            failed = False
        except Exception:
            _log.exception("the endpoints could not be reconciled")
            failed = True
        longest = max(_LONGEST_PAUSE_SECONDS, self._settings.reconcile_seconds)
        self._pause = min(2 * self._pause, longest) if failed else self._settings.reconcile_seconds


def _outcomes(answer: Any, longest: float) -> list[Outcome]:
    """The reconciler's answer, once it is there. Says so if that takes a while.

    Raises:
        ClusterError: there is none after so many seconds.
        ConflictError: another command replaced the reconciler.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    try:
        ready, _ = ray.wait([answer], timeout=_SILENT_SECONDS)
        if not ready:
            say(f"waiting for the reconciler, at most {duration(longest)}; it goes on if this command is interrupted")
        outcomes: list[Outcome] = ray.get(answer, timeout=longest)
    except RayTaskError as error:
        if isinstance(error.cause, MaasError):
            raise error.cause from error
        raise
    except GetTimeoutError as error:
        raise ClusterError(
            f"the reconciler has not answered for {duration(longest)}. `maas diff` shows what is left to do; "
            "`maas down` and `maas up` replace a reconciler that is stuck.",
            code="reconciler_silent",
        ) from error
    except RayActorError as error:
        raise ConflictError(
            "another command, with other settings or other code, replaced the reconciler meanwhile. Run `maas "
            "reconcile` again.",
            code="reconciler_replaced",
        ) from error
    return outcomes


def _longest_wait(settings: Settings) -> float:
    """Seconds in which a pass ends, and one that the reconciler is making already: the timeouts of all endpoints."""
    seconds = _WAIT_SECONDS + _CHANGE_SECONDS
    for record in Endpoints(settings).all():
        try:
            spec = DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
        except SpecError:  # an earlier version had other fields; the pass reports it
            continue
        placement_s = control.placement_timeout(spec.placement_timeout_s)
        # Replicas have that time to start, and a shared one has it again to load the model.
        seconds += 2 * (placement_s + 2 * spec.startup_timeout_s + _CHANGE_SECONDS)
    return seconds


def _portable(settings: Settings) -> Settings:
    """The settings for a process on another machine: with the contents of the files that they name."""
    shared = json.dumps(shared_args(settings).document()) if settings.shared else ""
    options = gateway_args(settings).model_dump(mode="json", exclude_unset=True) if settings.gateway else {}
    return settings.model_copy(update={"shared": shared, "gateway": json.dumps(options) if options else ""})


def _identity(settings: Settings) -> str:
    """The identity of a reconciler that this process would start."""
    return _digest(compute_code_version(), _portable(settings))


def _digest(code: str, settings: Settings) -> str:
    return digest_of({"code": code, "settings": settings.document()})


def _current(settings: Settings) -> Any:
    """The actor, with the code and the settings of this process. None: the cluster cannot run it."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    if _outside(settings):
        return None
    _existing(settings)
    deadline = time.monotonic() + _START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        actor = _actor(settings)
        try:
            if ray.get(actor.identity.remote(), timeout=left) == _identity(settings):
                return actor
            ray.kill(actor)
        except RayActorError:  # its name is taken until Ray has noticed its end
            time.sleep(_POLL_SECONDS)
        except GetTimeoutError:
            break
    return None


def _outside(settings: Settings) -> bool:
    """True if the database is a file of this machine, and this machine is not a node of the cluster."""
    from ray.util.client import ray as client

    return settings.database.startswith("sqlite") and bool(client.is_connected())


def _name(settings: Settings) -> str:
    return f"reconciler-{Endpoints(settings).platform.id}"


def _existing(settings: Settings) -> Any:
    """The platform's actor. None: it does not exist."""
    if old := _named(f"reconciler-{digest_of(settings.database)[:12]}"):  # as version 0.2.0 named it
        import ray

        ray.kill(old)
    return _named(_name(settings))


def _named(name: str) -> Any:
    import ray

    try:
        return ray.get_actor(name, namespace=_NAMESPACE)
    except ValueError:
        return None


def _actor(settings: Settings) -> Any:
    """The platform's actor, created if it does not exist. It runs where the database can be opened."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = settings.database.startswith("sqlite")
    here = ray.get_runtime_context().get_node_id()
    place: dict[str, Any] = (
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
        if local
        else {"resources": {_HEAD: 0.001}}
    )
    options: dict[str, Any] = {
        "name": _name(settings),
        "namespace": _NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 8,
    }
    # Replicas may run user code if the process that submits them may, so the actor gets this job's environment.
    inherited = (ray.get_runtime_context().runtime_env or {}).get("env_vars") or {}
    if f"{PREFIX}HOME" not in inherited:
        options["runtime_env"] = {"env_vars": cluster.worker_environment(settings)}
    return ray.remote(Reconciler).options(**options, **place).remote(_portable(settings).document())
