"""Desired against running: a pure function of what the database says and what Serve says.

Knows nothing of how either is read, nor of how a difference is made to go.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from maas_ray.serve.deployment.endpoints import Record, State
from maas_ray.serve.routes import direct_path, from_config, to_config
from maas_ray.serve.spec import GATEWAY_APP, GATEWAY_DEPLOYMENT, SHARED_APP, SHARED_DEPLOYMENT, DeploySpec, SharedArgs

MODEL_PREFIX = "model-"
_NONE = "nothing"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be.

    Args:
        endpoint: whose; where it is nobody's, the application's name.
        what: `missing`, `failed`, `unfinished`, `version`, `route`, `path`, `options`, `unwanted`, or a field of the
            spec.
        should, found: in words.
    """

    endpoint: str
    what: str
    should: str
    found: str


def differences(
    records: Sequence[Record], running: Mapping[str, Any], shared: SharedArgs | None = None
) -> list[Difference]:
    """Where what runs is not what should.

    Args:
        records: every endpoint as recorded.
        running: every application as Serve gives it, by name; those of an earlier moment than `records`, so that
            an application whose endpoint was made meanwhile is not taken for one without.
        shared: how shared replicas should work. None: as they do.
    """
    found = [difference for record in records for difference in _of_record(record, running)]
    found += _of_shared(running.get(SHARED_APP), shared)
    return [*found, *_of_gateway(records, running), *(_unwanted(name) for name in unwanted(records, running))]


def lost(record: Record, running: Mapping[str, Any]) -> str:
    """Why an endpoint's application does not do its work, in words; empty where it does."""
    application = record.serving_application
    found = running.get(application)
    if found is None or found["status"] == "DELETING":
        return f"{application} does not run"
    if found["status"] == "RUNNING" or running_replicas(found):
        return ""
    messages = [deployment["message"] for deployment in found["deployments"].values()] + [found["message"]]
    why = next((message.strip().splitlines()[-1] for message in messages if message.strip()), "")
    return f"{application} is {found['status'].lower()}" + (f": {why}" if why else "")


def unwanted(records: Iterable[Record], running: Mapping[str, Any]) -> list[str]:
    """Applications that `maas deploy` left behind: no endpoint needs them."""
    needed = needed_by(records)
    return [
        name
        for name, found in running.items()
        if (name.startswith(MODEL_PREFIX) or name == SHARED_APP)
        and found["source"] == "imperative"
        and found["status"] != "DELETING"
        and name not in needed
    ]


def unknown_routes(records: Iterable[Record], running: Mapping[str, Any]) -> list[str]:
    """Public model names that the gateway routes to and no record has: another database's endpoints."""
    return sorted(_routes_of(running.get(GATEWAY_APP)).keys() - {record.name for record in records})


def needed_by(records: Iterable[Record]) -> set[str]:
    """The applications that these endpoints need."""
    needed = set()
    for record in records:
        needed |= {record.application} if record.state is not State.FAILED else set()
        needed |= record.route.applications if record.route else set()
    return needed


def running_replicas(application: Mapping[str, Any]) -> int:
    """How many replicas of an application answer."""
    return sum(
        replica["state"] == "RUNNING"
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
    )


def changes(spec: DeploySpec, version: str, record: Record | None) -> list[Difference]:
    """Where an endpoint as recorded is not what a spec asks for.

    Args:
        spec: the spec, with its endpoint's name.
        version: what its version means now.
        record: None: there is no such endpoint.
    """
    name = str(spec.endpoint)
    if record is None or record.state is State.REMOVING:
        return [Difference(name, "missing", version, _NONE)]
    asked = _flat(spec.document()) | {"version": _named(spec.version, version)}
    stands = _flat(DeploySpec.parse(record.spec, source=f"endpoint {name}").document())
    stands |= {"version": _named(record.spec["version"], record.version)}
    return [
        Difference(name, field, str(asked.get(field, "not set")), str(stands.get(field, "not set")))
        for field in dict.fromkeys([*asked, *stands])
        if asked.get(field) != stands.get(field)
    ]


def _of_record(record: Record, running: Mapping[str, Any]) -> list[Difference]:
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
    should, has = own_path(record), running[record.serving_application]["route_prefix"]
    words = "over the gateway"
    return [] if has == should else [Difference(record.name, "path", should or words, has or words)]


def own_path(record: Record) -> str | None:
    """The prefix of the paths at which an endpoint's own replicas answer. None: the gateway does."""
    return direct_path(record.name) if record.spec.get("direct") else None


def _of_shared(application: Mapping[str, Any] | None, args: SharedArgs | None) -> list[Difference]:
    """The options of the shared replicas against those that they have; whether they run, their endpoints say."""
    if application is None or args is None:
        return []
    if application["source"] != "imperative" or application["status"] == "DELETING":
        return []
    config = application["deployments"].get(SHARED_DEPLOYMENT, {}).get("deployment_config", {})
    has, should = config.get("user_config") or {}, args.document()
    fields = [field for field in should if should[field] != has.get(field)]
    wanted, seen = ({field: one.get(field) for field in fields} for one in (should, has))
    return [Difference(SHARED_APP, "options", str(wanted), str(seen))] if fields else []


def _of_gateway(records: Sequence[Record], running: Mapping[str, Any]) -> list[Difference]:
    """The routing table as recorded against the one that the gateway has."""
    table = tuple(record.route for record in records if record.route is not None)
    should = {route["name"]: route for route in to_config(table)["routes"]}
    gateway = running.get(GATEWAY_APP)
    if gateway is None or gateway["status"] == "DELETING":
        return [Difference(GATEWAY_APP, "missing", f"routes to {', '.join(should)}", _NONE)] if should else []
    has = _routes_of(gateway)
    return [
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


def _routes_of(gateway: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """A running gateway's routes, by name."""
    deployment = gateway["deployments"].get(GATEWAY_DEPLOYMENT, {}) if gateway else {}
    config = deployment.get("deployment_config", {}).get("user_config") or {"routes": []}
    return {route["name"]: route for route in _as_written_now(config)["routes"]}


def _as_written_now(config: dict[str, Any]) -> dict[str, Any]:
    """A gateway's `user_config` in this version's form, if it can be read, so that only meanings are compared."""
    try:
        return to_config(from_config(config))
    except ValidationError:
        return config


def _unwanted(application: str) -> Difference:
    return Difference(application, "unwanted", _NONE, "runs, and no endpoint needs it")


def _named(asked: str, version: str) -> str:
    return version if asked == version else f"{version} ({asked})"


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        nested = isinstance(value, dict) and not (prefix == "" and name == "smoke")
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
