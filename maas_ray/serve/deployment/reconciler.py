"""The reconciler: one named actor that reconciles in a loop, so that a change outlives the command that began it.

The actor is detached from its driver, restarted by Ray when it dies, and holds a lease in the platform's database
while it works, so that two processes never reconcile at once. Its state is in the database, so killing it loses
nothing. `reconcile` asks it for a pass and waits; between such passes it makes unattended ones of its own.
"""

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
from maas_ray.errors import ConflictError, MaasError
from maas_ray.serve.deployment.desired import compute_code_version
from maas_ray.serve.deployment.reconcile import Outcome, reconcile_once, work
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.terminal.lines import say

_log = logging.getLogger("maas_ray.reconciler")
_LEASE = "reconcile"
_NAMESPACE = "maas"
_HEAD = "node:__internal_head__"
_START_SECONDS = 60.0
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.3
_LONGEST_PAUSE_SECONDS = 600.0


def reconcile(*, settings: Settings | None = None) -> list[Outcome]:
    """Restore the endpoints that should serve, finish changes that have begun, delete unneeded applications; once.

    The reconciler does the work. If none can be started, this process does.

    Raises:
        ClusterError: there is no cluster, and none could be started.
        ConflictError: another process is reconciling, and does not end.
        DeploymentError: the gateway cannot be started, or comes from a Serve config file.
    """
    from ray.exceptions import RayTaskError

    settings = settings or Settings.from_environment()
    if not work(settings):
        return []
    cluster.connect(settings)
    actor = _current(settings)
    if actor is None:
        say("no process for the reconciler could be started on the cluster; this process reconciles")
        return leased_pass(settings, wait_seconds=_WAIT_SECONDS)
    import ray

    try:
        outcomes: list[Outcome] = ray.get(actor.reconcile.remote(settings.document()))
    except RayTaskError as error:
        if isinstance(error.cause, MaasError):
            raise error.cause from error
        raise
    return outcomes


def ensure(settings: Settings) -> None:
    """Have a reconciler on the connected cluster, unless the settings turn its loop off. Returns at once."""
    if settings.reconcile_seconds and not _outside(settings):
        _actor(settings)


def leased_pass(settings: Settings, *, wait_seconds: float, unattended: bool = False) -> list[Outcome]:
    """`reconcile_once`, while this process holds the lease.

    Raises:
        ConflictError: another process holds the lease, or this one lost it.
        MaasError: see `reconcile_once`.
    """
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
        self._code = compute_code_version()
        self._requests: queue.SimpleQueue[Future[list[Outcome]] | None] = queue.SimpleQueue()
        self._pause = self._settings.reconcile_seconds
        threading.Thread(target=self._loop, name="reconciler", daemon=True).start()

    def code(self) -> str:
        """The version of the package that this process runs."""
        return self._code

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
                if compute_code_version() != self._code:
                    os._exit(0)  # Ray starts it again, with the code that is installed now
                self._unattended_pass()
                continue
            if request is None:  # the pause has changed
                continue
            try:
                request.set_result(leased_pass(self._settings, wait_seconds=_WAIT_SECONDS))
            except BaseException as error:
                request.set_exception(error)
            self._pause = self._settings.reconcile_seconds

    def _unattended_pass(self) -> None:
        """A pass of the loop. While passes fail, the pause doubles up to ten minutes."""
        try:
            outcomes = leased_pass(self._settings, wait_seconds=0, unattended=True) if work(self._settings) else []
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


def _current(settings: Settings) -> Any:
    """The actor, running the code that this process runs. None: the cluster cannot run it."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    if _outside(settings):
        return None
    deadline = time.monotonic() + _START_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        actor = _actor(settings)
        try:
            if ray.get(actor.code.remote(), timeout=left) == compute_code_version():
                return actor
            ray.kill(actor)  # it runs an earlier version's code
        except RayActorError:  # its name is taken until Ray has noticed its end
            time.sleep(_POLL_SECONDS)
        except GetTimeoutError:
            break
    return None


def _outside(settings: Settings) -> bool:
    """True if the database is a file of this machine, and this machine is not a node of the cluster."""
    from ray.util.client import ray as client

    return settings.database.startswith("sqlite") and bool(client.is_connected())


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
    options = {
        "name": f"reconciler-{digest_of(settings.database)[:12]}",
        "namespace": _NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 8,
        "runtime_env": {"env_vars": cluster.worker_environment(settings)},
    }
    return ray.remote(Reconciler).options(**options, **place).remote(settings.document())
