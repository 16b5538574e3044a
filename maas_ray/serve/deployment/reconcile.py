"""One pass that brings the cluster to the recorded state: after its restart, or after a deployer that died.

It restores endpoints that should serve and do not, continues changes that have begun (or undoes one that cannot be
done), gives the gateway its routes, and deletes applications that no endpoint needs. Endpoints are independent: a
failure of one does not stop the others. A pass may be interrupted and repeated at any moment, also beside deployers.

No pass deletes applications while the gateway has routes that this database does not know: it may be an older copy.

An unattended pass, which nobody asked for, does less. It leaves a change to its deployer while that holds the lease of
the change, starts shared replicas only if they are lost, deletes no applications, and touches neither a Serve that was
shut down nor a gateway of another platform, or with routes that this database does not know.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from maas_ray import cluster
from maas_ray.errors import ConflictError, MaasError
from maas_ray.ray_private.serve import forget_client
from maas_ray.registry.versions import Registry
from maas_ray.serve.deployment import desired, drift, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.gateway_routes import apply_gateway, check_gateway, gateway_args
from maas_ray.serve.deployment.ownership import other_platform, shared_app
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec
from maas_ray.settings import Settings, exists

_GRACE_SECONDS = 60.0  # in which a deployer takes the lease of a change that it has recorded


@dataclass(frozen=True)
class Outcome:
    """The result of one repair.

    Args:
        endpoint: the endpoint; for an application that belongs to none, the application.
        done: the result, in words.
        problem: why the repair failed. Empty: it succeeded.
    """

    endpoint: str
    done: str
    problem: str = ""


def work(settings: Settings) -> bool:
    """True if the database has an endpoint that serves, or a change that has begun."""
    if not exists(settings.database):
        return False
    return any(_unsettled(record) or record.route for record in Endpoints(settings).all())


def reconcile_once(
    settings: Settings, *, unattended: bool = False, check: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Bring the cluster to the recorded state.

    Args:
        settings: of the platform.
        unattended: nobody asked for this pass, see the module.
        check: called between repairs. It raises if this process may not go on.

    Raises:
        ClusterError: there is no cluster, and none could be started.
        ConflictError: raised by `check`.
        DeploymentError: the gateway cannot be started, comes from a Serve config file, or is another platform's.
    """
    cluster.connect(settings)
    forget_client()
    if unattended and not control.running():
        return []
    endpoints = Endpoints(settings)
    running = control.applications()
    records = endpoints.all()
    other = other_platform(endpoints.platform, records, running)
    if unattended and other:
        return [Outcome(GATEWAY_APP, "was not touched", f"the cluster serves {other}")]
    url = control.start(settings)
    check_gateway(endpoints)
    strangers = ", ".join(drift.unknown_routes(records, running))
    if unattended and strangers:
        problem = f"it also routes to {strangers}, which this database does not know"
        return [Outcome(GATEWAY_APP, "was not touched", problem)]
    outcomes = []
    for outcome in _repairs(endpoints, records, running, settings, url, unattended):
        outcomes.append(outcome)
        check()
    if not unattended:
        outcomes += _delete_unwanted(endpoints, drift.unwanted(endpoints.platform, records, running), strangers)
    return outcomes


def _repairs(
    endpoints: Endpoints,
    records: list[Record],
    running: Mapping[str, Any],
    settings: Settings,
    url: str,
    unattended: bool,
) -> Iterator[Outcome]:
    # Only who asks for a pass has the newest options of the shared replicas and of the gateway.
    options = () if unattended else (rollout.shared_args(settings), gateway_args(settings))
    differences = drift.differences(endpoints.platform, records, running, *options)
    mine = [record for record in records if not (unattended and _deployer_may_live(endpoints, record))]
    for record in mine:
        if record.state is State.REMOVING:
            yield _remove(endpoints, record, settings)
    name = shared_app(endpoints.platform)
    shared = [record for record in mine if record.route and name in record.route.applications]
    if shared and (drift.lost(shared[0], running) or any(found.what == "options" for found in differences)):
        # One repair for all endpoints that the shared replicas serve.
        yield _share(name, settings)
        running = control.applications()
    changes = []
    for record in mine:
        if record.state is State.DEPLOYING or (record.route and drift.lost(record, running)):
            change = _resume(endpoints, record, settings)
            if isinstance(change, Outcome):
                yield change
            else:
                changes.append(change)
    # The table has the routes of everything that is starting, so that each is reached as soon as it runs.
    if _routes_differ(differences):
        apply_gateway(endpoints, settings)
        yield Outcome(GATEWAY_APP, "has its routes")
    for change in changes:
        yield _finish(endpoints, change, settings, url)
    yield from _restore_options(endpoints, differences)


def _delete_unwanted(endpoints: Endpoints, names: list[str], strangers: str) -> list[Outcome]:
    """Delete applications that no endpoint needs. `strangers`: routes of the gateway when the pass began."""
    if strangers:
        problem = f"the gateway routed to {strangers}, which this database does not know. Reconcile again to delete it"
        return [Outcome(name, "was not deleted", problem) for name in names]
    rollout.delete_unused(endpoints, names)
    return [Outcome(name, "deleted: no endpoint needs it") for name in names]


def _unsettled(record: Record) -> bool:
    return record.state in (State.DEPLOYING, State.REMOVING)


def _deployer_may_live(endpoints: Endpoints, record: Record) -> bool:
    """True if whoever began a change of this endpoint may still be carrying it out."""
    if not _unsettled(record) or record.updated is None:
        return False
    return datetime.now(UTC) - record.updated < timedelta(seconds=_GRACE_SECONDS) or endpoints.lease(record).taken()


def _routes_differ(differences: list[drift.Difference]) -> bool:
    return any(found.endpoint == GATEWAY_APP or found.what in ("version", "route") for found in differences)


def _restore_options(endpoints: Endpoints, differences: list[drift.Difference]) -> Iterator[Outcome]:
    differing = {found.endpoint for found in differences if found.what in ("path", "scaling", "options")}
    for record in endpoints.all():
        try:
            if record.state is State.SERVING and record.name in differing:
                rollout.restore_options(record)
                yield Outcome(record.name, "has its path, its scaling and its options")
            if record.state is State.FAILED and record.route:  # the gateway had failed, and works now
                endpoints.put(replace(record, state=State.SERVING, problem=""))
        except ConflictError as error:
            yield Outcome(record.name, "was left to another writer", str(error))
        except MaasError as error:
            yield Outcome(record.name, "was not given its options", str(error))


def _remove(endpoints: Endpoints, record: Record, settings: Settings) -> Outcome:
    try:
        rollout.remove(endpoints, record, settings)
    except MaasError as error:
        return Outcome(record.name, "was not removed", str(error))
    return Outcome(record.name, "removed, as was begun")


def _share(name: str, settings: Settings) -> Outcome:
    """Restore the shared replicas, whose application has this name."""
    try:
        rollout.submit_shared(name, settings)
        defaults = DeploySpec.model_fields
        control.wait(
            name,
            placement_timeout_s=defaults["placement_timeout_s"].default,
            startup_timeout_s=defaults["startup_timeout_s"].default,
            report=lambda _: None,
        )
    except MaasError as error:
        return Outcome(name, "could not be started", str(error))
    return Outcome(name, "runs as it should")


def _resume(endpoints: Endpoints, record: Record, settings: Settings) -> rollout.Change | Outcome:
    """Begin to bring an endpoint to its recorded state."""
    begun, before = record, rollout.served(endpoints, record)
    try:
        spec = DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
        registry = Registry(settings)
        version = registry.resolve(record.version)
        wanted = desired.wanted(spec, version, registry, endpoints.platform)
        if record.state is State.DEPLOYING and record.application == wanted.application:
            change = rollout.Change(wanted, before, record)
        else:
            (change,) = rollout.begin(endpoints, [(wanted, record)])
            begun, before = change.begun, change.before
        rollout.submit(endpoints, change, settings)
    except ConflictError as error:
        return Outcome(record.name, "was left to another writer", str(error))
    except MaasError as error:
        rollout.take_back(endpoints, begun, before, error)
        return Outcome(record.name, f"{record.version} could not be started", str(error))
    return change


def _finish(endpoints: Endpoints, change: rollout.Change, settings: Settings, url: str) -> Outcome:
    name, version = change.begun.name, change.begun.version
    try:
        change = rollout.make_ready(change, settings)
    except MaasError as error:
        rollout.take_back(endpoints, change.begun, change.before, error)
        return Outcome(name, f"{version} could not be started", str(error))
    try:
        rollout.switch(endpoints, [change], settings, url)
    except ConflictError as error:
        return Outcome(name, "was left to another writer", str(error))
    return Outcome(name, f"serves {version}")
