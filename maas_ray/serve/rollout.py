"""From one version to another: new replicas ready and asked once before the route moves, the old ones drained after.

A change is recorded before it begins, and every step can be done twice: who finds one that its deployer
left unfinished can go on with it, also while that deployer still lives. Several changes move together or
not at all. Knows no verbs.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import maas_ray
from maas_ray.console import progress, say
from maas_ray.errors import ConflictError, DeploymentError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve import control, smoke
from maas_ray.serve.drift import MODEL_PREFIX, needed_by, running_replicas
from maas_ray.serve.endpoints import Endpoints, Record, State
from maas_ray.serve.routes import make_route
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec, GatewayArgs
from maas_ray.settings import Settings
from maas_ray.spec import digest_of

# Options that need no new replicas: running ones take them over, or they only say how to deploy.
_LIVE_OPTIONS = {
    "endpoint",
    "version",
    "scaling",
    "max_queued_requests",
    "request_timeout_s",
    "placement_timeout_s",
    "startup_timeout_s",
    "smoke",
}


@dataclass(frozen=True)
class Change:
    """An endpoint on its way.

    Args:
        version: what it shall serve.
        wanted: the record of that, not written yet.
        before: the record of what it serves, which stays if the change fails. None: nothing.
        begun: the record as written when the change began.
    """

    version: ModelVersion
    wanted: Record
    before: Record | None
    begun: Record


def wanted(spec: DeploySpec, version: ModelVersion) -> Record:
    """The record of an endpoint that serves a version as a spec says.

    Raises:
        MaasError: the bundle is missing, damaged, or not the one that was registered.
    """
    name = spec.endpoint or version.name
    spec = spec.model_copy(update={"endpoint": name})
    application = _application_name(spec, version)
    return Record(
        name=name,
        revision=0,
        spec=spec.document(),
        version=version.reference,
        uri=version.uri,
        digest=version.digest,
        application=application,
        route=make_route(version, endpoint=name, application=application, timeout_s=spec.request_timeout_s),
        state=State.SERVING,
    )


def begin(endpoints: Endpoints, asked: Sequence[tuple[ModelVersion, Record, Record | None]]) -> list[Change]:
    """Record that changes begin: of each the version, the record that is wanted, and the one that stands.

    Raises:
        ConflictError: somebody else changed one of the endpoints meanwhile.
    """
    begun = endpoints.put_all(
        [
            replace(
                new,
                revision=old.revision if old else 0,
                route=old.route if old else None,
                state=State.DEPLOYING,
            )
            for _, new, old in asked
        ]
    )
    return [
        Change(version, new, served(endpoints, old), record)
        for (version, new, old), record in zip(asked, begun, strict=True)
    ]


def served(endpoints: Endpoints, record: Record | None) -> Record | None:
    """The record of what an endpoint serves, also where a change of it was begun. None: it serves nothing."""
    if record is None or record.route is None:
        return None
    for last in endpoints.history(record.name)[:1]:
        return replace(
            record,
            spec=last.spec,
            version=last.version,
            uri=last.uri,
            digest=last.digest,
            application=record.route.application,
            state=State.SERVING,
        )
    return record


def carry_out(endpoints: Endpoints, changes: Sequence[Change], settings: Settings, url: str) -> None:
    """Carry out all changes, or none.

    Raises:
        DeploymentError: one could not be brought up; what was served before still is.
        ConflictError: somebody else changed one of the endpoints meanwhile.
    """
    try:
        for change in changes:
            submit(change)
        ready = [make_ready(change) for change in changes]
    except BaseException as error:
        for change in changes:
            take_back(endpoints, change.begun, change.before, error, settings)
        raise
    switch(endpoints, ready, settings, url)


def submit(change: Change) -> None:
    """Begin to bring up a change's application."""
    from maas_ray.serve import model_app

    name, route = change.begun.application, change.wanted.route
    assert route is not None  # noqa: S101  what is wanted is served
    control.wait_until_gone(name)
    found = control.applications().get(name)
    if found and found["status"] == "DEPLOY_FAILED" and not running_replicas(found):
        # Serve would not try again what it takes for the same.
        control.delete([name])
        control.wait_until_gone(name)
    spec = DeploySpec.parse(change.wanted.spec, source=f"endpoint {change.begun.name}")
    control.submit(model_app.application(spec, change.version, route), name, version=name, route_prefix=None)


def make_ready(change: Change) -> Change:
    """Return when a change's application works and has answered its smoke request: the change, with its engine.

    Raises:
        DeploymentError: it does not, or has not.
    """
    spec = DeploySpec.parse(change.wanted.spec, source=f"endpoint {change.begun.name}")
    with progress(f"{change.begun.name}: replicas ready") as bar:
        control.wait(
            change.begun.application,
            placement_timeout_s=spec.placement_timeout_s,
            startup_timeout_s=spec.startup_timeout_s,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )
    route = change.wanted.route
    assert route is not None  # noqa: S101
    smoke.check(route, spec.smoke)
    if route.kind == "generate":
        route = route.model_copy(update={"engine": control.ask(route.application, "engine")})
    return replace(change, wanted=replace(change.wanted, route=route))


def switch(endpoints: Endpoints, changes: Sequence[Change], settings: Settings, url: str) -> None:
    """Move the routes, all at once, then let the old applications go.

    Raises:
        DeploymentError: the gateway does not work.
        ConflictError: somebody else changed one of the endpoints meanwhile.
    """
    moved = [replace(change.wanted, revision=change.begun.revision) for change in changes]
    try:
        moved = endpoints.put_all(moved)
    except ConflictError:
        if all(_done_already(endpoints.get(record.name), record) for record in moved):
            return  # by somebody who carried out the same change
        delete_unused(endpoints, [record.application for record in moved])
        raise
    try:
        apply_gateway(endpoints, settings)
        control.wait_for_http(url)
    except DeploymentError as error:
        with suppress(ConflictError):
            endpoints.put_all([replace(r, state=State.FAILED, problem=f"gateway: {error}") for r in moved])
        raise
    delete_unused(endpoints, [change.before.application for change in changes if change.before])


def take_back(
    endpoints: Endpoints, begun: Record, before: Record | None, error: BaseException, settings: Settings
) -> None:
    """After a failure: what was served stays, and the record says so."""
    problem = f"{begun.version}: {str(error) or type(error).__name__}"
    try:
        if before is None:
            endpoints.put(replace(begun, state=State.FAILED, problem=problem))
        else:
            endpoints.put(replace(before, revision=begun.revision, problem=problem))
    except ConflictError:  # somebody else has taken over
        delete_unused(endpoints, [begun.application])
        return
    if before and before.route and before.application == begun.application and before.spec != begun.spec:
        # The same replicas with other options: give them the old ones back.
        from maas_ray.serve import model_app

        old = DeploySpec.parse(before.spec, source=f"endpoint {begun.name}")
        application = model_app.application(old, Registry(settings).resolve(before.version), before.route)
        control.submit(application, begun.application, version=begun.application, route_prefix=None)
    delete_unused(endpoints, [begun.application])


def apply_gateway(endpoints: Endpoints, settings: Settings) -> None:
    """Give the gateway the routing table as it is recorded, starting it where it does not run.

    Raises:
        DeploymentError: it did not come up.
    """
    from maas_ray.serve import gateway

    args = GatewayArgs(grpc_host=control.host(), grpc_port=settings.grpc_port)
    with endpoints.exclusive() as table:
        application = gateway.application(args, table)
        control.submit(application, GATEWAY_APP, version=_code_version(), route_prefix="/")
    with progress("gateway: replicas ready") as bar:
        control.wait(
            GATEWAY_APP,
            placement_timeout_s=60,
            startup_timeout_s=120,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )
    if args.grpc_port and (problem := control.ask(GATEWAY_APP, "grpc_problem")):
        say(problem)


def check_gateway() -> None:
    """See that this cluster's gateway takes its routes from the database.

    Raises:
        DeploymentError: a Serve config file says what it routes to.
    """
    found = control.applications().get(GATEWAY_APP)
    if found and found["source"] == "declarative":
        raise DeploymentError(
            "this cluster's gateway comes from a Serve config file (`serve deploy`), which alone says what it "
            "routes to. Add the endpoint to that file; or end Serve (`serve shutdown`) and use `maas deploy`."
        )


def delete_unused(endpoints: Endpoints, applications: Iterable[str]) -> None:
    """Delete those applications that no endpoint needs."""
    needed = needed_by(endpoints.all())
    control.delete([name for name in dict.fromkeys(applications) if name not in needed])


def _done_already(now: Record | None, moved: Record) -> bool:
    return now is not None and now == replace(moved, revision=now.revision, updated=now.updated)


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
    return f"{MODEL_PREFIX}{slug}-{identity[:8]}"


@cache
def _code_version() -> str:
    """Identifies this package's code: replicas that run other code are replaced."""
    digest = hashlib.sha256()
    root = Path(maas_ray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
