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

from maas_ray.errors import ConflictError, DeploymentError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment import smoke
from maas_ray.serve.deployment.drift import MODEL_PREFIX, needed_by, own_path, running_replicas
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.engines.vllm import chosen
from maas_ray.serve.resolve import make_route, share
from maas_ray.serve.routes import direct_path
from maas_ray.serve.spec import GATEWAY_APP, SHARED_APP, DeploySpec, GatewayArgs, SharedArgs
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.terminal.lines import progress, say
from maas_ray.version import PACKAGE

# Options that need no new replicas: running ones take them over, or they only say how to deploy.
_LIVE_OPTIONS = {
    "endpoint",
    "version",
    "scaling",
    "max_queued_requests",
    "request_timeout_s",
    "placement_timeout_s",
    "startup_timeout_s",
    "adapters",
    "smoke",
    "direct",
}


@dataclass(frozen=True)
class Change:
    """An endpoint on its way.

    Args:
        wanted: the record of what it shall serve, not written yet.
        before: the record of what it serves, which stays if the change fails. None: nothing.
        begun: the record as written when the change began.
    """

    wanted: Record
    before: Record | None
    begun: Record


def wanted(spec: DeploySpec, version: ModelVersion, registry: Registry) -> Record:
    """The record of an endpoint that serves a version as a spec says; its adapters' aliases become numbers.

    Raises:
        MaasError: a bundle is missing, damaged, or not the one that was registered; an adapter does not fit; or the
            spec asks for what its task cannot have.
    """
    name = spec.endpoint or version.name
    adapters = resolve_adapters(spec, registry)
    pinned = {adapter: found.reference for adapter, found in adapters.items()}
    spec = chosen(spec, version.task).model_copy(update={"endpoint": name, "adapters": pinned})
    application = SHARED_APP if spec.replicas == "shared" else _application_name(spec, version)
    timeout_s = spec.request_timeout_s
    route = make_route(version, endpoint=name, application=application, timeout_s=timeout_s, adapters=adapters)
    spec.check_kind(route.kind)
    return Record(
        name=name,
        revision=0,
        spec=spec.document(),
        version=version.reference,
        uri=version.uri,
        digest=version.digest,
        application=application,
        route=share(route, version, spec) if spec.replicas == "shared" else route,
        state=State.SERVING,
    )


def resolve_adapters(spec: DeploySpec, registry: Registry) -> dict[str, ModelVersion]:
    """The versions that a spec's adapters mean now, by name.

    Raises:
        NotFoundError: there is no such version.
    """
    found = {}
    for name, version in spec.adapters.items():
        with spec.at(f"adapters.{name}"):
            found[name] = registry.resolve(version)
    return found


def begin(endpoints: Endpoints, asked: Sequence[tuple[Record, Record | None]]) -> list[Change]:
    """Record that changes begin: of each the record that is wanted, and the one that stands.

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
            for new, old in asked
        ]
    )
    return [Change(new, served(endpoints, old), record) for (new, old), record in zip(asked, begun, strict=True)]


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
            application=record.route.target.application,
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
            submit(change, settings)
        ready = [make_ready(change) for change in changes]
    except BaseException as error:
        for change in changes:
            take_back(endpoints, change.begun, change.before, error)
        raise
    switch(endpoints, ready, settings, url)


def submit(change: Change, settings: Settings) -> None:
    """Begin to bring up a change's application; of shared replicas, see that they run as they should."""
    name = change.wanted.application
    if name == SHARED_APP:
        submit_shared(settings)
        return
    _make_way(name)
    stays = change.before is not None and change.before.application == name
    # Another's path is taken over when the route is.
    _submit(change.wanted, own_path(change.wanted) if stays else None)


def shared_args(settings: Settings) -> SharedArgs:
    """How shared replicas should work.

    Raises:
        SpecError: the file that says it is wrong.
    """
    return SharedArgs.from_yaml(settings.shared) if settings.shared else SharedArgs()


def submit_shared(settings: Settings) -> None:
    """Begin to bring the shared replicas to what the settings say of them."""
    from maas_ray.serve import shared

    _make_way(SHARED_APP)
    args = shared_args(settings)
    # Running replicas take over all else.
    version = digest_of({"resources": args.resources.document(), "code": _code_version()})[:12]
    control.submit(shared.application(args), SHARED_APP, version=version, route_prefix=None)


def _make_way(name: str) -> None:
    """Return when an application of that name can be submitted."""
    control.wait_until_gone(name)
    found = control.applications().get(name)
    if found and found["status"] == "DEPLOY_FAILED" and not running_replicas(found):
        # Serve would not try again what it takes for the same.
        control.delete([name])
        control.wait_until_gone(name)


def _submit(record: Record, route_prefix: str | None) -> None:
    """Make what a record says the target of its application."""
    from maas_ray.serve import model_app

    assert record.route is not None  # noqa: S101  what is wanted is served
    spec = DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
    application = model_app.application(spec, record.uri, record.route)
    control.submit(application, record.application, version=record.application, route_prefix=route_prefix)


def right_path(record: Record) -> None:
    """Give an endpoint's application the path that the record says, or none."""
    _submit(record, own_path(record))


def give_path(record: Record, url: str, before: Record | None = None) -> None:
    """Lead the path of a `direct` endpoint to its own replicas, away from those of `before`.

    Wherever it leads to none, the gateway answers. Returns when the version of the record does.
    """
    assert record.route is not None  # noqa: S101
    if before and own_path(before) and before.application != record.application:
        found = control.applications().get(before.application)
        if found and found["status"] != "DELETING":
            _submit(before, None)
    path = own_path(record)
    if path:
        _submit(record, path)
    if path or (before and own_path(before)):
        # HAProxy is told of it within a second.
        control.wait_for_http(f"{url}{direct_path(record.name)}", f'"versions":["{record.route.number}"]'.encode())


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
    engine = control.ask(  # by which shared replicas load it
        route.target.application, "engine", shared=route.target.shared, timeout_s=spec.startup_timeout_s
    )
    before = change.before.route if change.before else None
    standing = before.adapters if before and before.target.application == route.target.application else ()
    for one in route.expanded():
        if one.adapter is None or one.adapter not in standing:
            smoke.check(one, spec.smoke)
    route = route.model_copy(update={"engine": engine})
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
        control.wait_for_http(f"{url}/v2/health/live")
    except DeploymentError as error:
        with suppress(ConflictError):
            endpoints.put_all([replace(r, state=State.FAILED, problem=f"gateway: {error}") for r in moved])
        raise
    for change in changes:
        give_path(change.wanted, url, change.before)
    delete_unused(endpoints, [change.before.application for change in changes if change.before])


def take_back(endpoints: Endpoints, begun: Record, before: Record | None, error: BaseException) -> None:
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
    same = before and before.route and before.application == begun.application != SHARED_APP
    if before and before.route and same and before.spec != begun.spec:
        # The same replicas with other options: give them the old ones back.
        _submit(before, own_path(before))
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
    root = PACKAGE
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
