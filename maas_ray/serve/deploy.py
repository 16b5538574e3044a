"""The verbs of serving: version → route, as one transaction.

A version gets an application of its own, beside the one that serves; only when that runs does the route
move, and only when the route has moved does the old application go. So a deployment that fails leaves
what was served untouched. What should stand is recorded in the database, and the gateway's routing table
is always made from there, so two deployers cannot lose each other's routes.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import maas_ray
from maas_ray import cluster
from maas_ray.console import progress
from maas_ray.errors import ClusterError, ConflictError, DeploymentError, NotFoundError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve import control
from maas_ray.serve.endpoints import Endpoints, Record, State
from maas_ray.serve.routes import Route, make_route
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.spec import digest_of

# Options that running replicas take over without a restart.
_LIVE_OPTIONS = {
    "endpoint",
    "version",
    "scaling",
    "max_queued_requests",
    "request_timeout_s",
    "placement_timeout_s",
    "startup_timeout_s",
}


@dataclass(frozen=True)
class Endpoint:
    """A public model name.

    Args:
        name: the name.
        version: what it serves, `name/number`; where it serves nothing, what it should.
        task: what the model does.
        engine: what generates its text, and why not a faster one. Empty: it generates none.
        state: `serving`, `unhealthy`, `deploying`, `failed`, `removing`, or `down`: no such application runs.
        replicas: how many run.
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
    url: str
    problem: str
    updated: datetime | None


def deploy(spec: DeploySpec, *, settings: Settings | None = None) -> Endpoint:
    """Bring a version up behind a public name, and return when it answers there.

    Raises:
        NotFoundError: there is no such version.
        DeploymentError: it could not be brought up; what was served before still is.
        ConflictError: somebody else changed the endpoint meanwhile.
    """
    settings = settings or Settings.from_environment()
    with spec.at("version"):
        version = Registry(settings).resolve(spec.version)
    name = spec.endpoint or version.name
    spec = spec.model_copy(update={"endpoint": name, "version": version.reference})
    application = _application_name(spec, version)
    route = make_route(version, endpoint=name, application=application, timeout_s=spec.request_timeout_s)
    cluster.connect(settings)
    url = control.start(settings)
    _check_gateway()

    endpoints = Endpoints(settings)
    before = endpoints.get(name)
    record = endpoints.put(
        Record(
            name=name,
            revision=before.revision if before else 0,
            spec=spec.document(),
            version=version.reference,
            uri=version.uri,
            digest=version.digest,
            application=application,
            route=before.route if before else None,
            state=State.DEPLOYING,
        )
    )
    try:
        route = _bring_up(spec, version, route)
    except BaseException as error:
        _take_back(endpoints, record, before, error, settings)
        raise
    try:
        record = endpoints.put(replace(record, route=route, state=State.SERVING))
    except ConflictError:
        _delete_unused(endpoints, [application])
        raise
    try:
        _apply(endpoints)
        control.wait_for_http(url)
    except DeploymentError as error:
        with suppress(ConflictError):
            endpoints.put(replace(record, state=State.FAILED, problem=f"gateway: {error}"))
        raise
    if before is not None:
        _delete_unused(endpoints, [before.application, *([before.route.application] if before.route else [])])
    return _endpoint(record, control.applications(), url)


def undeploy(name: str, *, settings: Settings | None = None) -> None:
    """Take an endpoint down: its route first, then its application. The version stays registered.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    settings = settings or Settings.from_environment()
    endpoints = Endpoints(settings)
    record = endpoints.get(name)
    if record is None:
        known = ", ".join(record.name for record in endpoints.all()) or "none"
        raise NotFoundError(f"there is no endpoint {name!r}; there are: {known}.")
    applications = [record.application, *([record.route.application] if record.route else [])]
    record = endpoints.put(replace(record, route=None, state=State.REMOVING, problem=""))
    # Where no cluster runs, nothing is served: there is only the record to remove.
    with suppress(ClusterError):
        cluster.connect(settings, start=False)
        if GATEWAY_APP in control.applications():
            control.start(settings)
            _apply(endpoints)
        control.delete(applications)
    endpoints.remove(record)


def endpoints(*, settings: Settings | None = None) -> list[Endpoint]:
    """Every endpoint, as recorded and as it really stands."""
    settings = settings or Settings.from_environment()
    records = Endpoints(settings).all()
    running: dict[str, Any] = {}
    url = ""
    with suppress(ClusterError):
        if records:
            cluster.connect(settings, start=False)
            running = control.applications()
            url = control.start(settings) if GATEWAY_APP in running else ""
    return [_endpoint(record, running, url) for record in records]


def _bring_up(spec: DeploySpec, version: ModelVersion, route: Route) -> Route:
    """Run a model's application and wait until it works. Returns the route with what it says of itself."""
    from maas_ray.serve import model_app

    name = route.application
    control.wait_until_gone(name)
    with progress(f"{route.name}: replicas ready") as bar:
        control.submit(model_app.application(spec, version, route), name, version=name, route_prefix=None)
        control.wait(
            name,
            placement_timeout_s=spec.placement_timeout_s,
            startup_timeout_s=spec.startup_timeout_s,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )
    return route.model_copy(update={"engine": control.ask(name, "engine")}) if route.kind == "generate" else route


def _take_back(
    endpoints: Endpoints, record: Record, before: Record | None, error: BaseException, settings: Settings
) -> None:
    """After a failure: what was served stays, and the record says so."""
    problem = str(error) or type(error).__name__
    if before is None or before.route is None:
        failed = replace(record, state=State.FAILED, problem=f"{record.version}: {problem}")
    else:
        failed = replace(before, revision=record.revision, state=State.SERVING, problem=f"{record.version}: {problem}")
        if before.route.application == record.application:
            # The same replicas with other options: give them the old ones back.
            from maas_ray.serve import model_app

            old = DeploySpec.parse(before.spec, source=f"endpoint {record.name}")
            application = model_app.application(old, Registry(settings).resolve(before.version), before.route)
            control.submit(application, record.application, version=record.application, route_prefix=None)
    with suppress(ConflictError):  # then somebody else has taken over
        endpoints.put(failed)
    _delete_unused(endpoints, [record.application])


def _apply(endpoints: Endpoints) -> None:
    """Give the gateway the routing table as it is recorded, starting it where it does not run."""
    from maas_ray.serve import gateway

    with endpoints.exclusive() as table:
        application = gateway.application(GatewayArgs(), table)
        control.submit(application, GATEWAY_APP, version=_code_version(), route_prefix="/")
    with progress("gateway: replicas ready") as bar:
        control.wait(
            GATEWAY_APP,
            placement_timeout_s=60,
            startup_timeout_s=120,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )


def _delete_unused(endpoints: Endpoints, applications: list[str]) -> None:
    """Delete those applications that no endpoint needs."""
    needed = set()
    for record in endpoints.all():
        needed |= {record.application} if record.state is not State.FAILED else set()
        needed |= {record.route.application} if record.route else set()
    control.delete([name for name in dict.fromkeys(applications) if name not in needed])


def _check_gateway() -> None:
    found = control.applications().get(GATEWAY_APP)
    if found and found["source"] == "declarative":
        raise DeploymentError(
            "this cluster's gateway comes from a Serve config file (`serve deploy`), which alone says what it "
            "routes to. Add the endpoint to that file; or end Serve (`serve shutdown`) and use `maas deploy`."
        )


def _endpoint(record: Record, running: dict[str, Any], url: str) -> Endpoint:
    version, task, engine, state, replicas = record.version, "", "", record.state.value, 0
    if record.route is not None:
        version, task, engine = record.route.version, record.route.task, record.route.engine
        found = running.get(record.route.application)
        deployments = found["deployments"].values() if found else ()
        replicas = sum(one["state"] == "RUNNING" for deployment in deployments for one in deployment["replicas"])
        if found is None:
            state = "down"
        elif found["status"] == "UNHEALTHY" or (found["status"] != "RUNNING" and not replicas):
            state = "unhealthy"
    serves = record.route is not None and state != "down"
    url = url if serves else ""
    return Endpoint(record.name, version, task, engine, state, replicas, url, record.problem, record.updated)


def _application_name(spec: DeploySpec, version: ModelVersion) -> str:
    """A name for what must be a new application when it changes; live options are not part of it."""
    identity = digest_of(
        {
            "endpoint": spec.endpoint,
            "version": version.reference,
            "bundle": [version.uri, version.digest],
            "options": spec.model_dump(mode="json", exclude=_LIVE_OPTIONS),
            "code": _code_version(),
        }
    )
    slug = "".join(letter if letter.isalnum() else "-" for letter in str(spec.endpoint).lower())
    return f"model-{slug}-{identity[:8]}"


@cache
def _code_version() -> str:
    """Identifies this package's code: replicas that run other code are replaced."""
    digest = hashlib.sha256()
    root = Path(maas_ray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
