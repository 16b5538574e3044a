"""Moving endpoints to another version: start new replicas, send a smoke request, move the route, drain the old ones.

A change is recorded before it begins and every step is idempotent. A process that finds an unfinished change can
continue it, even while the deployer that began it still lives. Several changes move together or not at all. Knows
no verbs.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from maas_ray.errors import ConflictError, DeploymentError
from maas_ray.serve.autoscaling import first_replicas
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment import smoke
from maas_ray.serve.deployment.desired import code_version
from maas_ray.serve.deployment.drift import (
    holds_replicas,
    http_options,
    needed_by,
    own_path,
    running_replicas,
    target_replicas,
)
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.gateway_routes import apply_gateway, check_gateway, claim_gateway, gateway_args
from maas_ray.serve.deployment.ownership import model_apps
from maas_ray.serve.routes import direct_path
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec, Scaling, SharedArgs
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.terminal.lines import progress, say


@dataclass(frozen=True)
class Change:
    """An endpoint on its way from one record to another.

    Args:
        wanted: the record it shall have, not written yet.
        before: the record it has while it serves, which stays if the change fails. None: it serves nothing.
        begun: the record as written when the change began.
    """

    wanted: Record
    before: Record | None
    begun: Record


def begin(endpoints: Endpoints, requested: Sequence[tuple[Record, Record | None]]) -> list[Change]:
    """Record that changes begin.

    Args:
        endpoints: the table of endpoints.
        requested: for each endpoint the desired record and the present one.

    Raises:
        ConflictError: another writer changed one of the endpoints meanwhile.
    """
    begun = endpoints.put_all(
        [
            replace(
                new,
                revision=old.revision if old else 0,
                route=old.route if old else None,
                state=State.DEPLOYING,
            )
            for new, old in requested
        ]
    )
    return [Change(new, served(endpoints, old), record) for (new, old), record in zip(requested, begun, strict=True)]


def served(endpoints: Endpoints, record: Record | None) -> Record | None:
    """The record that an endpoint serves by, even if a change of it has begun. None: it serves nothing."""
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
    """Carry out all changes, or none. Meanwhile this process holds their leases.

    Raises:
        DeploymentError: an application could not be started; the endpoints serve what they served before.
        ConflictError: another writer changed one of the endpoints meanwhile.
    """
    with ExitStack() as leases:
        try:
            for change in changes:
                leases.enter_context(endpoints.lease(change.begun).held(wait_seconds=0))
            for change in changes:
                submit(endpoints, change, settings)
            ready = [make_ready(change, settings) for change in changes]
        except BaseException as error:
            for change in changes:
                take_back(endpoints, change.begun, change.before, error)
            raise
        switch(endpoints, ready, settings, url)


def submit(endpoints: Endpoints, change: Change, settings: Settings) -> None:
    """Begin to start a change's application, or bring the shared replicas to their options.

    Raises:
        DeploymentError: an application that has to stop first did not end.
    """
    name = change.wanted.application
    if change.wanted.shared:
        submit_shared(name, settings)
        return
    _make_way(name)
    # A path that another application has moves together with the route.
    path = own_path(change.wanted) if _stays(change) else None
    running, before = control.applications(), change.before
    replaced = running.get(before.application) if before and not before.shared else None
    needed = running_replicas(replaced) if replaced else 0
    spec = _spec(change.wanted)
    if spec.strategy == "recreate":
        _stop_others(endpoints, change.wanted, before)
    _submit(change.wanted, path, _first_replicas(spec.scaling, running.get(name), needed))


def _stop_others(endpoints: Endpoints, record: Record, before: Record | None) -> None:
    """Stop the other versions of an endpoint, because the cluster has no room for them and this one.

    Args:
        endpoints: the table of endpoints.
        record: the version that is about to start.
        before: the record that the endpoint serves by.
    """
    running = control.applications()
    others = set(model_apps(endpoints.platform, record.name, running)) - {record.application}
    if before and not before.shared and before.application != record.application:
        others.add(before.application)
    others &= running.keys() - needed_by(other for other in endpoints.all() if other.name != record.name)
    if not others:
        return
    timeouts = [one.route.timeout_s for one in (record, before) if one and one.route]
    say(f"{record.name}: the replicas that run finish their requests and stop, before {record.version} starts")
    control.delete(sorted(others))
    for name in others:
        control.wait_until_gone(name, max(timeouts))


def _start_again(endpoints: Endpoints, record: Record) -> None:
    """Start the version that an endpoint served, after it was stopped for one that failed."""
    running = control.applications().get(record.application)
    if running and running["status"] != "DELETING":
        return  # it had not been stopped yet
    spec = _spec(record)
    try:
        _stop_others(endpoints, record, None)
        _make_way(record.application)
        say(f"{record.name}: {record.version} starts again")
        _submit(record, own_path(record), first_replicas(spec.scaling))
        _wait(record, spec, surplus_timeout_s=0)
    except DeploymentError as error:
        say(f"{record.name}: {record.version} does not serve yet ({error}); `maas reconcile` tries again")


def _stays(change: Change) -> bool:
    """True if running replicas of the endpoint get new options, instead of being replaced."""
    return change.before is not None and change.before.application == change.wanted.application


def _spec(record: Record) -> DeploySpec:
    return DeploySpec.parse(record.spec, source=f"endpoint {record.name}")


def _first_replicas(scaling: Scaling, running: Mapping[str, Any] | None, needed: int = 0) -> int | None:
    """Replicas that an application starts with. None: it runs, and keeps its number.

    Args:
        scaling: its bounds.
        running: the application as it runs now.
        needed: replicas of the application that it replaces.
    """
    return None if running and target_replicas(running) else first_replicas(scaling, needed)


def shared_args(settings: Settings) -> SharedArgs:
    """Options of the shared replicas.

    Raises:
        SpecError: the file that MAAS_SHARED names is wrong.
    """
    if settings.shared.startswith("{"):
        return SharedArgs.from_text(settings.shared, source="MAAS_SHARED")
    return SharedArgs.from_yaml(settings.shared) if settings.shared else SharedArgs()


def submit_shared(name: str, settings: Settings) -> None:
    """Begin to bring the shared replicas to the options that the settings name.

    Args:
        name: their application.
        settings: of the platform.
    """
    from maas_ray.serve import shared

    _make_way(name)
    args = shared_args(settings)
    # Running replicas accept changes of all other options.
    version = digest_of({"resources": args.resources.document(), "code": code_version()})[:12]
    replicas = _first_replicas(args.scaling, control.applications().get(name))
    control.submit(shared.application(args, replicas), name, version=version, route_prefix=None)


def _make_way(name: str) -> None:
    """Wait until an application of that name can be submitted."""
    control.wait_until_gone(name)
    running = control.applications().get(name)
    if running and running["status"] == "DEPLOY_FAILED" and not running_replicas(running):
        # Serve does not retry an application that it considers unchanged.
        control.delete([name])
        control.wait_until_gone(name)


def _submit(record: Record, route_prefix: str | None, replicas: int | None = None) -> None:
    """Make a record the target state of its application. `replicas`: see `autoscaling.autoscaling`."""
    from maas_ray.serve import model_app

    assert record.route is not None  # noqa: S101  a desired record has a route
    # Replicas answer by the limits of the gateway beside them, which has been given its own before.
    http = http_options(control.applications())
    direct = route_prefix is not None
    application = model_app.application(_spec(record), record.uri, record.route, replicas, direct=direct, http=http)
    control.submit(application, record.application, version=record.application, route_prefix=route_prefix)


def restore_options(record: Record) -> None:
    """Give an endpoint's application its recorded path, or take its path away; and give it its recorded bounds."""
    _submit(record, own_path(record))


def give_path(record: Record, url: str, before: Record | None = None) -> None:
    """Lead the path of a `direct` endpoint to its own replicas, away from those of `before`.

    A path that leads to no application is answered by the gateway. Returns when the record's version answers.
    """
    assert record.route is not None  # noqa: S101
    if before and own_path(before) and before.application != record.application:
        running = control.applications().get(before.application)
        if running and running["status"] != "DELETING":
            _submit(before, None)
    path = own_path(record)
    if path:
        _submit(record, path)
    if path or (before and own_path(before)):
        # HAProxy learns of it within a second.
        control.wait_for_http(f"{url}{direct_path(record.name)}", f'"versions":["{record.route.number}"]'.encode())


def make_ready(change: Change, settings: Settings) -> Change:
    """Wait until a change's application works and has answered its smoke request.

    Returns:
        The change, with the engine that its replicas chose.

    Raises:
        DeploymentError: it does not work, or did not answer.
    """
    spec = _spec(change.wanted)
    # An autoscaled endpoint that stays may want more replicas than fit, with new options or without.
    _wait(change.begun, spec, surplus_timeout_s=0 if _stays(change) else spec.placement_timeout_s)
    route = change.wanted.route
    assert route is not None  # noqa: S101
    engine = control.ask(  # which also makes a shared replica load the model
        route.target.application, "engine", shared=route.target.shared, timeout_s=spec.startup_timeout_s
    )
    before = change.before.route if change.before else None
    standing = before.adapters if before and before.target.application == route.target.application else ()
    for one in route.expanded():
        if one.adapter is None or one.adapter not in standing:
            smoke.check(one, spec.smoke, gateway_args(settings))
    route = route.model_copy(update={"engine": engine})
    return replace(change, wanted=replace(change.wanted, route=route))


def _wait(record: Record, spec: DeploySpec, *, surplus_timeout_s: float | None) -> None:
    """Wait until an endpoint's application runs."""
    with progress(f"{record.name}: replicas ready") as bar:
        control.wait(
            record.application,
            placement_timeout_s=spec.placement_timeout_s,
            startup_timeout_s=spec.startup_timeout_s,
            enough=None if record.shared else max(1, spec.scaling.min_replicas),
            surplus_timeout_s=surplus_timeout_s,
            report=lambda now: bar.update(now.running, now.note, total=now.wanted),
        )


def switch(endpoints: Endpoints, changes: Sequence[Change], settings: Settings, url: str) -> None:
    """Move all routes at once, then delete the old applications.

    Raises:
        DeploymentError: the gateway does not work.
        ConflictError: another writer changed one of the endpoints meanwhile.
    """
    moved = [replace(change.wanted, revision=change.begun.revision) for change in changes]
    try:
        claim_gateway(endpoints, settings)
    except DeploymentError as error:
        for change in changes:
            take_back(endpoints, change.begun, change.before, error)
        raise
    try:
        moved = endpoints.put_all(moved)
    except ConflictError:
        if all(_done_already(endpoints.get(record.name), record) for record in moved):
            return  # another process has carried out the same change
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
        if holds_replicas(change.wanted, control.applications()):
            restore_options(change.wanted)  # from now on, Serve sees its requests
    delete_unused(endpoints, [change.before.application for change in changes if change.before])


def take_back(endpoints: Endpoints, begun: Record, before: Record | None, error: BaseException) -> None:
    """Undo a change that failed: the endpoint serves what it served before, and its record says why."""
    problem = f"{begun.version}: {str(error) or type(error).__name__}"
    try:
        if before is None:
            endpoints.put(replace(begun, state=State.FAILED, problem=problem))
        else:
            endpoints.put(replace(before, revision=begun.revision, problem=problem))
    except ConflictError:  # another process has taken over
        delete_unused(endpoints, [begun.application])
        return
    same = before and before.route and before.application == begun.application and not begun.shared
    if before and before.route and same and before.spec != begun.spec:
        # The same replicas got new options. Give them the old options back.
        running = control.applications().get(before.application)
        if running and 0 < running_replicas(running) < target_replicas(running):
            # Replicas that the new options asked for did not fit, and are not wanted any more.
            scaling = _spec(before).scaling
            _submit(before, own_path(before), _first_replicas(scaling, None, running_replicas(running)))
        _submit(before, own_path(before))
    elif before and not before.shared and _spec(begun).strategy == "recreate":
        _start_again(endpoints, before)
    delete_unused(endpoints, [begun.application])


def remove(endpoints: Endpoints, record: Record, settings: Settings, *, connected: bool = True) -> None:
    """Remove an endpoint: its route, its application, its record. An unfinished removal is continued.

    Args:
        endpoints: the table of endpoints.
        record: the endpoint's record.
        settings: of the platform.
        connected: this process is connected to a cluster. Without a cluster there is only the record to remove.

    Raises:
        ConflictError: another writer changed the endpoint meanwhile.
        DeploymentError: the cluster serves another platform.
    """
    if connected:
        check_gateway(endpoints)
    applications = [record.application, *(record.route.applications if record.route else ())]
    record = endpoints.put(replace(record, route=None, state=State.REMOVING, problem=""))
    with endpoints.lease(record).held(wait_seconds=0):
        if connected:
            if GATEWAY_APP in control.applications():
                control.start(settings)
                apply_gateway(endpoints, settings)
            others = needed_by(other for other in endpoints.all() if other.name != record.name)
            control.delete([name for name in applications if name not in others])
        endpoints.remove(record)


def delete_unused(endpoints: Endpoints, applications: Iterable[str]) -> None:
    """Delete those of the given applications that no endpoint needs."""
    needed = needed_by(endpoints.all())
    control.delete([name for name in dict.fromkeys(applications) if name not in needed])


def _done_already(now: Record | None, moved: Record) -> bool:
    return now is not None and now == replace(moved, revision=now.revision, updated=now.updated)
