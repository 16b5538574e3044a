"""Making what runs what the database says, once: after a cluster's restart, or after a deployer that died.

It brings up again what should stand and does not, goes on with what was begun and not finished (or takes it
back, if it cannot be done), gives the gateway its routes, and deletes applications that nobody needs. Each
endpoint stands for itself: one that cannot be brought up holds up no other. It may be ended at any moment
and run again, and run beside deployers.
"""

from dataclasses import dataclass, replace

from maas_ray import cluster
from maas_ray.errors import ConflictError, MaasError
from maas_ray.registry.versions import Registry
from maas_ray.serve.deployment import drift, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.verbs import remove
from maas_ray.serve.spec import GATEWAY_APP, SHARED_APP, DeploySpec
from maas_ray.settings import Settings, exists


@dataclass(frozen=True)
class Outcome:
    """What was done about one difference.

    Args:
        endpoint: whose; where it is nobody's, the application's name.
        done: in words.
        problem: why it could not be done. Empty: it could.
    """

    endpoint: str
    done: str
    problem: str = ""


def reconcile(*, settings: Settings | None = None) -> list[Outcome]:
    """Bring back what should stand, finish what was begun, remove what nobody needs; once.

    Raises:
        ClusterError: there is no cluster, and none could be started.
        DeploymentError: the gateway cannot be brought up, or is not ours.
    """
    settings = settings or Settings.from_environment()
    if not exists(settings.database):
        return []
    endpoints = Endpoints(settings)
    if not any(_unsettled(record) or record.route for record in endpoints.all()):
        return []
    cluster.connect(settings)
    url = control.start(settings)
    rollout.check_gateway()
    running = control.applications()
    records = endpoints.all()
    found = drift.differences(records, running, rollout.shared_args(settings))
    outcomes = [_remove(endpoints, record, settings) for record in records if record.state is State.REMOVING]
    shared = [record for record in records if record.route and SHARED_APP in record.route.applications]
    if shared and (drift.lost(shared[0], running) or any(one.what == "options" for one in found)):
        # Once for all their endpoints, which need nothing more.
        outcomes.append(_share(settings))
        running = control.applications()
    changes = [
        _resume(endpoints, record, settings)
        for record in records
        if record.state is State.DEPLOYING or (record.route and drift.lost(record, running))
    ]
    # The routes of all that is coming up, so that each is reached as soon as it is there.
    if _routes_differ(found):
        rollout.apply_gateway(endpoints, settings)
        outcomes.append(Outcome(GATEWAY_APP, "has its routes"))
    outcomes += [
        change if isinstance(change, Outcome) else _finish(endpoints, change, settings, url) for change in changes
    ]
    pathless = {difference.endpoint for difference in found if difference.what == "path"}
    for record in endpoints.all():
        if record.state is State.SERVING and record.name in pathless:
            rollout.right_path(record)
            outcomes.append(Outcome(record.name, "has its path"))
        if record.state is State.FAILED and record.route:  # its gateway had failed
            endpoints.put(replace(record, state=State.SERVING, problem=""))
    left = drift.unwanted(records, running)
    rollout.delete_unused(endpoints, left)
    return outcomes + [Outcome(name, "deleted: no endpoint needs it") for name in left]


def _unsettled(record: Record) -> bool:
    return record.state in (State.DEPLOYING, State.REMOVING)


def _routes_differ(found: list[drift.Difference]) -> bool:
    return any(difference.endpoint == GATEWAY_APP or difference.what in ("version", "route") for difference in found)


def _remove(endpoints: Endpoints, record: Record, settings: Settings) -> Outcome:
    try:
        remove(endpoints, record, settings)
    except MaasError as error:
        return Outcome(record.name, "was not removed", str(error))
    return Outcome(record.name, "removed, as was begun")


def _share(settings: Settings) -> Outcome:
    """Bring the shared replicas back."""
    try:
        rollout.submit_shared(settings)
        defaults = DeploySpec.model_fields
        control.wait(
            SHARED_APP,
            placement_timeout_s=defaults["placement_timeout_s"].default,
            startup_timeout_s=defaults["startup_timeout_s"].default,
            report=lambda _: None,
        )
    except MaasError as error:
        return Outcome(SHARED_APP, "could not be brought up", str(error))
    return Outcome(SHARED_APP, "runs as it should")


def _resume(endpoints: Endpoints, record: Record, settings: Settings) -> rollout.Change | Outcome:
    """Begin to bring an endpoint to what is recorded."""
    begun, before = record, rollout.served(endpoints, record)
    try:
        spec = DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
        registry = Registry(settings)
        version = registry.resolve(record.version)
        wanted = rollout.wanted(spec, version, registry)
        if record.state is State.DEPLOYING and record.application == wanted.application:
            change = rollout.Change(wanted, before, record)
        else:
            (change,) = rollout.begin(endpoints, [(wanted, record)])
            begun, before = change.begun, change.before
        rollout.submit(change, settings)
    except ConflictError as error:
        return Outcome(record.name, "was left to somebody else", str(error))
    except MaasError as error:
        rollout.take_back(endpoints, begun, before, error)
        return Outcome(record.name, f"{record.version} could not be brought up", str(error))
    return change


def _finish(endpoints: Endpoints, change: rollout.Change, settings: Settings, url: str) -> Outcome:
    name, version = change.begun.name, change.begun.version
    try:
        change = rollout.make_ready(change)
    except MaasError as error:
        rollout.take_back(endpoints, change.begun, change.before, error)
        return Outcome(name, f"{version} could not be brought up", str(error))
    try:
        rollout.switch(endpoints, [change], settings, url)
    except ConflictError as error:
        return Outcome(name, "was left to somebody else", str(error))
    return Outcome(name, f"serves {version}")
