"""The verbs of serving: deploy, promote, roll back, undeploy, list, compare.

A new version gets an application of its own beside the one that serves. The route moves only after the new
application has answered a smoke request, and the old application is deleted only after the route has moved, so a
failed deployment changes nothing for clients. The desired state is recorded in the database, and the gateway's routing
table is always written from there, so two deployers cannot lose each other's routes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from maas_ray import cluster
from maas_ray.database.platform import Platform
from maas_ray.errors import ConflictError, NotFoundError
from maas_ray.registry.gates import pass_gates
from maas_ray.registry.references import check_alias
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.deployment import desired, drift, reconciler, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, Served, State
from maas_ray.serve.deployment.gateway_routes import check_gateway, gateway_args
from maas_ray.serve.engines.vllm import chosen
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec
from maas_ray.settings import Settings, exists
from maas_ray.tasks import find_task
from maas_ray.tasks.rows import TensorSpec
from maas_ray.terminal.lines import say


@dataclass(frozen=True)
class Endpoint:
    """A public model name.

    Args:
        name: the name.
        version: the version it serves, `name/number`; if it serves none, the version it should serve.
        task: the model's task.
        engine: the engine that computes, and why no faster one does. Empty: not known.
        state: `serving`, `unhealthy`, `deploying`, `failed`, `removing`; `down` if its application does not run, and
            `not routed` if it runs, but the cluster's gateway does not lead to it, as when that is another platform's.
        replicas: the number of running replicas.
        adapters: versions of the LoRA adapters that are served as `name:adapter`.
        shared: the replicas serve other endpoints too.
        url: the gateway's URL. Empty: there is no gateway.
        problem: why the last deployment failed. Empty: it succeeded.
        updated: time of the record's last change.
        sample: a row to try, in the task's own terms. Empty: not known.
    """

    name: str
    version: str
    task: str
    engine: str
    state: str
    replicas: int
    adapters: dict[str, str]
    shared: bool
    url: str
    problem: str
    updated: datetime | None
    sample: dict[str, Any] = field(default_factory=dict)


def deploy(spec: DeploySpec, *, settings: Settings | None = None) -> Endpoint:
    """Serve a version at an endpoint, and return when it answers there.

    An endpoint that is in the desired state already is left alone.

    Raises:
        NotFoundError: there is no such version.
        ClusterError: there is no cluster, and none could be started; or its nodes have other code than this process.
        DeploymentError: it could not be started; the endpoint serves what it served before.
        ConflictError: another writer changed the endpoint meanwhile.
    """
    settings = settings or Settings.from_environment()
    with spec.at("version"):
        version = Registry(settings).resolve(spec.version)
    (endpoint,) = _serve([(spec, version)], settings)
    reconciler.ensure(settings)
    return endpoint


def promote(version: str, alias: str, *, gates: Sequence[str] = (), settings: Settings | None = None) -> list[Endpoint]:
    """Serve a version at every endpoint that was deployed from an alias, then point the alias at it.

    Either all endpoints and the alias move, or nothing does.

    Args:
        version: `name/number`, or `name@alias` for the version of another alias.
        alias: the alias, such as `champion`.
        gates: conditions that the version must meet, see `registry/gates.py`.
        settings: of the platform. None: from the environment.

    Returns:
        The endpoints of the alias.

    Raises:
        NotFoundError: there is no such version.
        GateError: the version does not pass a gate.
        DeploymentError: it could not be started for one of the endpoints; nothing has changed.
        ConflictError: another writer changed one of the endpoints meanwhile.
    """
    settings = settings or Settings.from_environment()
    registry = Registry(settings)
    check_alias(alias)
    resolved = registry.resolve(version)
    reference = f"{resolved.name}@{alias}"
    pass_gates(registry, resolved, alias, gates)
    records = Endpoints(settings).all() if exists(settings.database) else []
    specs = [
        DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
        for record in records
        if record.spec.get("version") == reference and record.state is not State.REMOVING
    ]
    moved = _serve([(spec, resolved) for spec in specs], settings) if specs else []
    registry.set_alias(resolved, alias)
    if moved:
        reconciler.ensure(settings)
    return moved


def rollback(name: str, *, to: int | None = None, settings: Settings | None = None) -> Endpoint:
    """Return an endpoint to a version that it served before, with the options of that time.

    Aliases do not move. An endpoint that followed an alias then follows it again.

    Args:
        name: the endpoint.
        to: the number in its history. None: the entry before the present one.
        settings: of the platform. None: from the environment.

    Raises:
        NotFoundError: there is no such endpoint, or no such entry in its history.
        ConflictError: the version has other content now; or another writer changed the endpoint meanwhile.
        DeploymentError: it could not be started; the endpoint serves what it served before.
    """
    settings = settings or Settings.from_environment()
    past = history(name, settings=settings)
    targets = past[1:2] if to is None else [entry for entry in past if entry.number == to]
    if not targets:
        entries = ", ".join(f"{entry.number} ({entry.version})" for entry in past) or "empty"
        missing = "no earlier entry" if to is None else f"no entry {to}"
        raise NotFoundError(
            f"the history of endpoint {name} has {missing}; its entries: {entries}.", code="history_entry_missing"
        )
    (target,) = targets
    version = Registry(settings).resolve(target.version)
    if version.digest != target.digest:
        raise ConflictError(
            f"{target.version} has other content now than when endpoint {name} served it, so it is not served again. "
            "Choose another entry with `--to`.",
            code="version_changed",
        )
    (endpoint,) = _serve([(DeploySpec.parse(target.spec, source=f"endpoint {name}"), version)], settings)
    reconciler.ensure(settings)
    return endpoint


def undeploy(name: str, *, settings: Settings | None = None) -> None:
    """Remove an endpoint: its route first, then its application. The version stays registered.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    settings = settings or Settings.from_environment()
    endpoints = Endpoints(settings)
    record = _existing(endpoints, name)
    rollout.remove(endpoints, record, settings, connected=control.connected(settings))


def endpoints(*, settings: Settings | None = None) -> list[Endpoint]:
    """Every endpoint, with its recorded and its actual state."""
    settings = settings or Settings.from_environment()
    table = Endpoints(settings)
    records = table.all()
    running = _running(settings) if records else {}
    url = control.start(settings) if GATEWAY_APP in running else ""
    return _described(table.platform, records, running, url)


def history(name: str, *, settings: Settings | None = None) -> list[Served]:
    """An endpoint's present and previous versions, newest first.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    settings = settings or Settings.from_environment()
    if not exists(settings.database):
        raise _no_endpoint(name, [])
    endpoints = Endpoints(settings)
    _existing(endpoints, name)
    return endpoints.history(name)


def diff(spec: DeploySpec | None = None, *, settings: Settings | None = None) -> list[drift.Difference]:
    """Differences between desired and actual state; or, with a spec, between the spec and the desired state.

    Raises:
        NotFoundError: the spec's version does not exist.
    """
    settings = settings or Settings.from_environment()
    known = exists(settings.database)
    if spec is None:
        # Applications are read before records, so that an endpoint created meanwhile is not reported.
        if not known:
            return []
        running = _running(settings)
        endpoints = Endpoints(settings)
        options = rollout.shared_args(settings), gateway_args(settings)
        return drift.differences(endpoints.platform, endpoints.all(), running, *options)
    registry = Registry(settings)
    with spec.at("version"):
        version = registry.resolve(spec.version)
    adapters = {name: pinned.reference for name, pinned in desired.resolve_adapters(spec, registry).items()}
    update = {"endpoint": spec.endpoint or version.name, "adapters": adapters}
    spec = chosen(spec, version.task).model_copy(update=update)
    return drift.changes(spec, version.reference, Endpoints(settings).get(str(spec.endpoint)) if known else None)


def _serve(requested: Sequence[tuple[DeploySpec, ModelVersion]], settings: Settings) -> list[Endpoint]:
    """Serve versions at their endpoints, all or none. Endpoints in the desired state are left alone."""
    registry = Registry(settings)
    endpoints = Endpoints(settings)
    wanted = [desired.wanted(spec, version, registry, endpoints.platform) for spec, version in requested]
    cluster.connect(settings)
    cluster.check_code()
    url = control.start(settings)
    check_gateway(endpoints)

    running, records = control.applications(), endpoints.all()
    options = rollout.shared_args(settings), gateway_args(settings)
    differences = drift.differences(endpoints.platform, records, running, *options)
    differing = {difference.endpoint for difference in differences}
    present = {record.name: record for record in records}
    others = [record for name, record in present.items() if name not in {new.name for new in wanted}]
    _name_outdated([record.name for record in others if desired.is_outdated(record, endpoints.platform)])
    changing = []
    for new in wanted:
        old = present.get(new.name)
        if old and desired.same(old, new) and not differing & {new.name, new.application, GATEWAY_APP}:
            say(f"{new.name} already serves {new.version}; nothing to do")
            if old.problem:
                endpoints.put(replace(old, problem=""))
        else:
            changing.append((new, old))
    if changing:
        rollout.carry_out(endpoints, rollout.begin(endpoints, changing), settings, url)
    names, running = {new.name for new in wanted}, control.applications()
    described = _described(endpoints.platform, endpoints.all(), running, url)
    return [endpoint for endpoint in described if endpoint.name in names]


def _name_outdated(names: Sequence[str]) -> None:
    if names:
        say(
            f"{', '.join(names)}: these endpoints run the code of another version of maas_ray, which may not "
            "understand this version's gateway. Deploy each of them again."
        )


def _running(settings: Settings) -> dict[str, Any]:
    """Every application of the cluster that runs, as Serve reports it."""
    return control.applications() if control.connected(settings) else {}


def _existing(endpoints: Endpoints, name: str) -> Record:
    record = endpoints.get(name)
    if record is None:
        raise _no_endpoint(name, [record.name for record in endpoints.all()])
    return record


def _no_endpoint(name: str, known: Sequence[str]) -> NotFoundError:
    return NotFoundError(
        f"endpoint {name!r} not found; endpoints: {', '.join(known) or 'none'}.", code="endpoint_not_found"
    )


def _described(platform: Platform, records: Sequence[Record], running: dict[str, Any], url: str) -> list[Endpoint]:
    """Each endpoint's recorded and actual state."""
    routed = drift.routed(platform, records, running)
    return [_endpoint(record, running, url, routed=record.name in routed) for record in records]


def _endpoint(record: Record, running: dict[str, Any], url: str, *, routed: bool) -> Endpoint:
    version, task, engine, state, replicas = record.version, "", "", record.state.value, 0
    shared = record.shared if record.route is None else bool(record.route.target.shared)
    adapters: dict[str, str] = {}
    sample: dict[str, Any] = {}
    if record.route is not None:
        if kind := find_task(record.route.task):
            sample = kind.request.sample([TensorSpec(**dict(tensor)) for tensor in record.route.inputs])
        version, task, engine = record.route.version, record.route.task, record.route.engine
        adapters = {adapter.name: adapter.version for adapter in record.route.adapters}
        application = running.get(record.serving_application)
        replicas = drift.running_replicas(application) if application else 0
        if application is None:  # with `strategy: recreate`, the old version stops before the new one starts
            state = "deploying" if record.state is State.DEPLOYING else "down"
        elif not routed:
            state = "not routed"
        elif application["status"] == "UNHEALTHY" or (application["status"] != "RUNNING" and not replicas):
            state = "unhealthy"
    answers = record.serving_application in running and state != "not routed"
    url = url if record.route is not None and answers else ""
    return Endpoint(
        name=record.name,
        version=version,
        task=task,
        engine=engine,
        state=state,
        replicas=replicas,
        shared=shared,
        adapters=adapters,
        url=url,
        problem=record.problem,
        updated=record.updated,
        sample=sample,
    )
