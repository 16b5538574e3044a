"""The verbs of serving: version → route, as one transaction.

A version gets an application of its own, beside the one that serves; only when that runs and has answered a
smoke request does the route move, and only when the route has moved does the old application go. So a
deployment that fails leaves what was served untouched. What should stand is recorded in the database, and
the gateway's routing table is always made from there, so two deployers cannot lose each other's routes.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from maas_ray import cluster
from maas_ray.errors import ClusterError, ConflictError, NotFoundError
from maas_ray.registry.gates import pass_gates
from maas_ray.registry.versions import ModelVersion, Registry, check_alias
from maas_ray.serve.deployment import desired, drift, reconciler, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, Served, State
from maas_ray.serve.deployment.gateway_routes import check_gateway
from maas_ray.serve.engines.vllm import chosen
from maas_ray.serve.spec import GATEWAY_APP, SHARED_APP, DeploySpec
from maas_ray.settings import Settings, exists
from maas_ray.terminal.lines import say


@dataclass(frozen=True)
class Endpoint:
    """A public model name.

    Args:
        name: the name.
        version: what it serves, `name/number`; where it serves nothing, what it should.
        task: what the model does.
        engine: what computes, and why not what is faster. Empty: not known.
        state: `serving`, `unhealthy`, `deploying`, `failed`, `removing`, or `down`: no such application runs.
        replicas: how many run.
        adapters: versions of the LoRA adapters that are served as `name:adapter`.
        shared: whether other endpoints are served by them too.
        url: where the gateway listens. Empty: nowhere.
        problem: why the last deployment failed. Empty: it did not.
        updated: when the record changed last.
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


def deploy(spec: DeploySpec, *, settings: Settings | None = None) -> Endpoint:
    """Bring a version up behind a public name, and return when it answers there.

    Where it stands so already, nothing is done.

    Raises:
        NotFoundError: there is no such version.
        DeploymentError: it could not be brought up; what was served before still is.
        ConflictError: somebody else changed the endpoint meanwhile.
    """
    settings = settings or Settings.from_environment()
    with spec.at("version"):
        version = Registry(settings).resolve(spec.version)
    (endpoint,) = _serve([(spec, version)], settings)
    return endpoint


def promote(version: str, alias: str, *, gates: Sequence[str] = (), settings: Settings | None = None) -> list[Endpoint]:
    """Bring every endpoint that was deployed from an alias to a version, then point the alias at it.

    All endpoints move, and the alias after them, or none does.

    Args:
        version: `name/number`, or `name@alias` for what another alias points at.
        alias: such as `champion`.
        gates: what must hold of the version, see `registry/gates.py`.
        settings: which platform. None: the environment's.

    Returns:
        Those endpoints.

    Raises:
        NotFoundError: there is no such version.
        GateError: a gate does not let it through.
        DeploymentError: it could not be brought up behind one of them; all is as it was.
        ConflictError: somebody else changed one of them meanwhile.
    """
    settings = settings or Settings.from_environment()
    registry = Registry(settings)
    found = registry.resolve(version)
    reference = f"{found.name}@{check_alias(alias)}"
    pass_gates(registry, found, alias, gates)
    records = Endpoints(settings).all() if exists(settings.database) else []
    specs = [
        DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
        for record in records
        if record.spec["version"] == reference and record.state is not State.REMOVING
    ]
    moved = _serve([(spec, found) for spec in specs], settings) if specs else []
    registry.set_alias(found, alias)
    return moved


def rollback(name: str, *, to: int | None = None, settings: Settings | None = None) -> Endpoint:
    """Serve again what an endpoint served before, with the options it had then.

    Aliases stay. What it was deployed from is what it was then, so an endpoint that followed an alias does again.

    Args:
        name: the endpoint.
        to: the number in its history. None: what it served before the present one.
        settings: which platform. None: the environment's.

    Raises:
        NotFoundError: there is no such endpoint, or nothing that it served before.
        ConflictError: the version is no longer the one it was; or somebody else changed the endpoint meanwhile.
        DeploymentError: it could not be brought up; what was served still is.
    """
    settings = settings or Settings.from_environment()
    past = history(name, settings=settings)
    found = past[1:2] if to is None else [one for one in past if one.number == to]
    if not found:
        had = ", ".join(f"{one.number} ({one.version})" for one in past) or "nothing"
        wanted = "anything else" if to is None else f"number {to}"
        raise NotFoundError(f"endpoint {name} never served {wanted} before; its history: {had}.")
    (target,) = found
    version = Registry(settings).resolve(target.version)
    if version.digest != target.digest:
        raise ConflictError(f"{target.version} has other content now than when {name} served it; it is not used.")
    (endpoint,) = _serve([(DeploySpec.parse(target.spec, source=f"endpoint {name}"), version)], settings)
    return endpoint


def undeploy(name: str, *, settings: Settings | None = None) -> None:
    """Take an endpoint down: its route first, then its application. The version stays registered.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    settings = settings or Settings.from_environment()
    endpoints = Endpoints(settings)
    record = _existing(endpoints, name)
    # Where no cluster runs, nothing is served: there is only the record to remove.
    connected = False
    with suppress(ClusterError):
        cluster.connect(settings, start=False)
        connected = True
    rollout.remove(endpoints, record, settings, connected=connected)


def endpoints(*, settings: Settings | None = None) -> list[Endpoint]:
    """Every endpoint, as recorded and as it really stands."""
    settings = settings or Settings.from_environment()
    records = Endpoints(settings).all()
    running = look(settings) if records else {}
    url = control.start(settings) if GATEWAY_APP in running else ""
    return [_endpoint(record, running, url) for record in records]


def history(name: str, *, settings: Settings | None = None) -> list[Served]:
    """What an endpoint serves and served before, newest first.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    settings = settings or Settings.from_environment()
    if not exists(settings.database):
        raise NotFoundError(f"there is no endpoint {name!r}; there are: none.")
    endpoints = Endpoints(settings)
    _existing(endpoints, name)
    return endpoints.history(name)


def diff(spec: DeploySpec | None = None, *, settings: Settings | None = None) -> list[drift.Difference]:
    """Where what runs is not what the database says; or, with a spec, where that is not what the spec asks for.

    Raises:
        NotFoundError: there is no such version as the spec asks for.
    """
    settings = settings or Settings.from_environment()
    known = exists(settings.database)
    if spec is None:
        running = look(settings) if known else {}  # before the records: what is deployed meanwhile is no difference
        records = Endpoints(settings).all() if known else []
        return drift.differences(records, running, rollout.shared_args(settings))
    registry = Registry(settings)
    with spec.at("version"):
        version = registry.resolve(spec.version)
    adapters = {name: found.reference for name, found in desired.resolve_adapters(spec, registry).items()}
    update = {"endpoint": spec.endpoint or version.name, "adapters": adapters}
    spec = chosen(spec, version.task).model_copy(update=update)
    return drift.changes(spec, version.reference, Endpoints(settings).get(str(spec.endpoint)) if known else None)


def look(settings: Settings) -> dict[str, Any]:
    """Every application that runs, as Serve gives it; none where no cluster runs."""
    with suppress(ClusterError):
        cluster.connect(settings, start=False)
        return control.applications()
    return {}


def _serve(asked: Sequence[tuple[DeploySpec, ModelVersion]], settings: Settings) -> list[Endpoint]:
    """Bring versions up behind their names, all or none; those that stand already are left alone."""
    registry = Registry(settings)
    wanted = [desired.wanted(spec, version, registry) for spec, version in asked]
    cluster.connect(settings)
    url = control.start(settings)
    check_gateway()

    endpoints = Endpoints(settings)
    running, records = control.applications(), endpoints.all()
    found = drift.differences(records, running, rollout.shared_args(settings))
    differing = {difference.endpoint for difference in found}
    standing = {record.name: record for record in records}
    changing = []
    for new in wanted:
        old = standing.get(new.name)
        if old and _same(old, new) and not differing & {new.name, new.application, GATEWAY_APP}:
            say(f"{new.name} serves {new.version} so already; nothing to do")
            if old.problem:
                endpoints.put(replace(old, problem=""))
        else:
            changing.append((new, old))
    if changing:
        rollout.carry_out(endpoints, rollout.begin(endpoints, changing), settings, url)
    reconciler.ensure(settings)
    names, running = {new.name for new in wanted}, control.applications()
    return [_endpoint(record, running, url) for record in endpoints.all() if record.name in names]


def _same(old: Record, new: Record) -> bool:
    if old.route and new.route:  # which engine it is, is known only when it runs
        new = replace(new, route=new.route.model_copy(update={"engine": old.route.engine}))
    return old == replace(new, revision=old.revision, problem=old.problem, updated=old.updated)


def _existing(endpoints: Endpoints, name: str) -> Record:
    record = endpoints.get(name)
    if record is None:
        known = ", ".join(record.name for record in endpoints.all()) or "none"
        raise NotFoundError(f"there is no endpoint {name!r}; there are: {known}.")
    return record


def _endpoint(record: Record, running: dict[str, Any], url: str) -> Endpoint:
    version, task, engine, state, replicas = record.version, "", "", record.state.value, 0
    shared = record.serving_application == SHARED_APP
    adapters: dict[str, str] = {}
    if record.route is not None:
        version, task, engine = record.route.version, record.route.task, record.route.engine
        adapters = {adapter.name: adapter.version for adapter in record.route.adapters}
        found = running.get(record.serving_application)
        replicas = drift.running_replicas(found) if found else 0
        if found is None:
            state = "down"
        elif found["status"] == "UNHEALTHY" or (found["status"] != "RUNNING" and not replicas):
            state = "unhealthy"
    serves = record.route is not None and state != "down"
    url = url if serves else ""
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
    )
