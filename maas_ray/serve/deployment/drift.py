"""Differences between the desired and the actual state: a pure function of records and of Serve's report.

Knows nothing of how either is read, nor of how a difference is repaired.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from maas_ray.database.platform import Platform
from maas_ray.serve.deployment.endpoints import Record, State
from maas_ray.serve.deployment.ownership import gateway_config, other_platform, owner, shared_app
from maas_ray.serve.routes import direct_path, from_config, to_config
from maas_ray.serve.spec import GATEWAY_APP, SHARED_DEPLOYMENT, DeploySpec, GatewayArgs, Scaling, SharedArgs

_NONE = "nothing"
_RUNNING = ("RUNNING", "UPDATING", "PENDING_MIGRATION")  # Serve's states of replicas that have started and stay


@dataclass(frozen=True)
class Difference:
    """One difference.

    Args:
        endpoint: the endpoint; for an application that belongs to none, the application.
        what: `missing`, `failed`, `unfinished`, `version`, `route`, `path`, `scaling`, `options`, `unwanted`,
            `platform`, or a field of the spec.
        should, found: the desired and the actual state, in words.
    """

    endpoint: str
    what: str
    should: str
    found: str


def differences(
    platform: Platform,
    records: Sequence[Record],
    running: Mapping[str, Any],
    shared: SharedArgs | None = None,
    gateway: GatewayArgs | None = None,
) -> list[Difference]:
    """Differences between records and applications.

    Args:
        platform: the platform whose records they are.
        records: every endpoint as recorded.
        running: every application as Serve reports it, by name. It must be read before `records`, or an application
            whose endpoint is created in between would seem to belong to none.
        shared: desired options of the shared replicas. None: they are not compared.
        gateway: desired options of the gateway. None: they are not compared.
    """
    differing = [found for record in records for found in _of_record(record, running, gateway)]
    differing += _of_shared(shared_app(platform), running, shared)
    differing += _of_gateway(platform, records, running, gateway)
    return [*differing, *(_unwanted(name) for name in unwanted(platform, records, running))]


def lost(record: Record, running: Mapping[str, Any]) -> str:
    """The reason why an endpoint's application does not answer. Empty: it does."""
    name = record.serving_application
    application = running.get(name)
    if application is None or application["status"] == "DELETING":
        return f"{name} does not run"
    if application["status"] == "RUNNING" or running_replicas(application):
        return ""
    deployments = application["deployments"].values()
    messages = [*(deployment["message"] for deployment in deployments), application["message"]]
    why = next((message.strip().splitlines()[-1] for message in messages if message.strip()), "")
    return f"{name} is {application['status'].lower()}" + (f": {why}" if why else "")


def unwanted(platform: Platform, records: Iterable[Record], running: Mapping[str, Any]) -> list[str]:
    """Applications of this platform that no endpoint needs any more."""
    needed = needed_by(records)
    return [
        name
        for name, application in running.items()
        if owner(name) == platform.id
        and application["source"] == "imperative"
        and application["status"] != "DELETING"
        and name not in needed
    ]


def unknown_routes(records: Iterable[Record], running: Mapping[str, Any]) -> list[str]:
    """Public model names that the gateway routes to and no record has: the database may be an older copy."""
    return sorted(_routes(running).keys() - {record.name for record in records})


def routed(platform: Platform, records: Sequence[Record], running: Mapping[str, Any]) -> set[str]:
    """Public model names that the gateway routes to. None of them, if the gateway is another platform's."""
    return set() if other_platform(platform, records, running) else set(_routes(running))


def needed_by(records: Iterable[Record]) -> set[str]:
    """The applications that these endpoints need."""
    needed = set()
    for record in records:
        needed |= {record.application} if record.state is not State.FAILED else set()
        needed |= record.route.applications if record.route else set()
    return needed


def running_replicas(application: Mapping[str, Any]) -> int:
    """Number of an application's running replicas, with those that take new options or are about to move."""
    return sum(
        replica["state"] in _RUNNING
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
    )


def target_replicas(application: Mapping[str, Any]) -> int:
    """Number of replicas that Serve wants an application to have."""
    return sum(deployment.get("target_num_replicas", 0) for deployment in application["deployments"].values())


def holds_replicas(record: Record, running: Mapping[str, Any]) -> bool:
    """True if the endpoint's application still has the minimum of replicas that it began with, see `model_app`."""
    application = running.get(record.application)
    held = _bounds(application).get("min_replicas") if application and not record.shared else None
    return held is not None and held > _recorded_minimum(record)


def _recorded_minimum(record: Record) -> int:
    # Not parsed: an earlier version may have had other fields.
    minimum: int = (record.spec.get("scaling") or {}).get("min_replicas", Scaling().min_replicas)
    return minimum


def _bounds(application: Mapping[str, Any]) -> Mapping[str, Any]:
    """The autoscaling configuration of an application's deployment."""
    deployments = application["deployments"].values()
    return next((one.get("deployment_config", {}).get("autoscaling_config") or {} for one in deployments), {})


def changes(spec: DeploySpec, version: str, record: Record | None) -> list[Difference]:
    """Differences between an endpoint's record and a spec.

    Args:
        spec: the spec, with its endpoint's name.
        version: the version that it resolves to now.
        record: the endpoint's record. None: the endpoint does not exist.
    """
    name = str(spec.endpoint)
    if record is None or record.state is State.REMOVING:
        return [Difference(name, "missing", version, _NONE)]
    requested = _flat(spec.document()) | {"version": _named(spec.version, version)}
    present = _flat(DeploySpec.parse(record.spec, source=f"endpoint {name}").document())
    present |= {"version": _named(record.spec.get("version", ""), record.version)}
    return [
        Difference(name, field, str(requested.get(field, "not set")), str(present.get(field, "not set")))
        for field in dict.fromkeys([*requested, *present])
        if requested.get(field) != present.get(field)
    ]


def http_options(running: Mapping[str, Any], desired: GatewayArgs | None = None) -> dict[str, Any]:
    """Options of the HTTP application (`create_app`) of the running gateway, or of the desired one."""
    options = gateway_config(running).get("options") or {}
    return (desired or GatewayArgs.model_validate(options, extra="ignore")).http_options()


def _of_record(record: Record, running: Mapping[str, Any], gateway: GatewayArgs | None) -> list[Difference]:
    serves = record.route.version if record.route else _NONE
    if record.state is State.REMOVING:
        return [Difference(record.name, "unfinished", _NONE, "being removed")]
    if record.state is State.DEPLOYING:
        return [Difference(record.name, "unfinished", record.version, f"{serves}; being deployed")]
    if record.state is State.FAILED:
        return [Difference(record.name, "failed", record.version, record.problem)]
    if why := lost(record, running):
        what = "missing" if why.endswith("does not run") else "failed"
        return [Difference(record.name, what, record.version, why)]
    found = []
    should, has = own_path(record), running[record.serving_application]["route_prefix"]
    words = "over the gateway"
    if has != should:
        found.append(Difference(record.name, "path", should or words, has or words))
    elif has:
        deployments = running[record.serving_application]["deployments"].values()
        configs = [one.get("deployment_config", {}).get("user_config") or {} for one in deployments]
        limits = next((config["http"] for config in configs if config.get("http")), GatewayArgs().http_options())
        if limits != (wanted := http_options(running, gateway)):
            found.append(Difference(record.name, "options", str(wanted), str(limits)))
    if holds_replicas(record, running):
        bounds = record.spec.get("scaling", {}), _bounds(running[record.serving_application])
        found.append(Difference(record.name, "scaling", *map(str, bounds)))
    return found


def own_path(record: Record) -> str | None:
    """The path prefix at which an endpoint's own replicas answer. None: the gateway answers."""
    return direct_path(record.name) if record.spec.get("direct") else None


def _of_shared(name: str, running: Mapping[str, Any], args: SharedArgs | None) -> list[Difference]:
    """Differences between desired and actual options of the shared replicas. Their endpoints report if they run."""
    application = running.get(name)
    if application is None or args is None:
        return []
    if application["source"] != "imperative" or application["status"] == "DELETING":
        return []
    config = application["deployments"].get(SHARED_DEPLOYMENT, {}).get("deployment_config", {})
    has, should = config.get("user_config") or {}, args.document()
    fields = [field for field in should if should[field] != has.get(field)]
    desired, actual = ({field: options.get(field) for field in fields} for options in (should, has))
    return [Difference(name, "options", str(desired), str(actual))] if fields else []


def _of_gateway(
    platform: Platform, records: Sequence[Record], running: Mapping[str, Any], args: GatewayArgs | None
) -> list[Difference]:
    """Differences between the recorded routing table and the gateway's, and between desired options and its."""
    table = tuple(record.route for record in records if record.route is not None)
    should = {route["name"]: route for route in to_config(table)["routes"]}
    if other := other_platform(platform, records, running):
        return [Difference(GATEWAY_APP, "platform", f"platform {platform.id}", other)] if should else []
    gateway = running.get(GATEWAY_APP)
    if gateway is None or gateway["status"] == "DELETING":
        return [Difference(GATEWAY_APP, "missing", f"routes to {', '.join(should)}", _NONE)] if should else []
    has = _routes(running)
    options = gateway_config(running).get("options")
    desired = args.own_options() if args else options
    differs = options is not None and desired != options
    return [Difference(GATEWAY_APP, "options", str(desired), str(options))] * differs + [
        _route(name, should.get(name), has.get(name))
        for name in sorted(should.keys() | has.keys())
        if should.get(name) != has.get(name)
    ]


def _route(name: str, should: dict[str, Any] | None, found: dict[str, Any] | None) -> Difference:
    if should and found and should["version"] == found["version"]:
        fields = [field for field in should if should[field] != found.get(field)]
        wanted, seen = ({field: route.get(field) for field in fields} for route in (should, found))
        return Difference(name, "route", str(wanted), str(seen))
    return Difference(name, "version", *(f"{route['version']}" if route else _NONE for route in (should, found)))


def _routes(running: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The running gateway's routes, by name."""
    return {route["name"]: route for route in _as_written_now(gateway_config(running) or {"routes": []})["routes"]}


def _as_written_now(config: dict[str, Any]) -> dict[str, Any]:
    """A gateway's `user_config` in this version's form, if it can be read, so that only meanings are compared."""
    try:
        return to_config(from_config(config))
    except ValidationError:
        return config


def _unwanted(application: str) -> Difference:
    return Difference(application, "unwanted", _NONE, "runs, but no endpoint needs it")


def _named(asked: str, version: str) -> str:
    return version if asked == version else f"{version} ({asked})"


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        nested = isinstance(value, dict) and not (prefix == "" and name == "smoke")
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
