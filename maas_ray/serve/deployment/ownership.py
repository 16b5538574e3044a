"""Which platform a cluster's gateway and applications belong to.

A cluster has one gateway, whose routing table is always written whole from one database. Two platforms on one cluster
would delete each other's routes, so names of applications and the gateway's `user_config` carry the platform's id, and
who does not own the gateway changes nothing. Applications of version 0.2.0 have no id in their names; they belong to
the platform whose records name them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from maas_ray.database.platform import Platform
from maas_ray.serve.deployment.endpoints import Record
from maas_ray.serve.spec import GATEWAY_APP, GATEWAY_DEPLOYMENT, SHARED_APP

_MODEL = re.compile(r"model-.+-(?P<id>[0-9a-f]{8})-[0-9a-f]{8}")
_SHARED = re.compile(rf"{SHARED_APP}-(?P<id>[0-9a-f]{{8}})")


def model_app(platform: Platform, endpoint: str, identity: str) -> str:
    """Name of an endpoint's own application."""
    return f"model-{_slug(endpoint)}-{platform.id}-{identity[:8]}"


def model_apps(platform: Platform, endpoint: str, names: Iterable[str]) -> list[str]:
    """Those applications that may be an endpoint's own. Similar names of endpoints give the same names."""
    prefix = f"model-{_slug(endpoint)}-{platform.id}-"
    return [name for name in names if name.startswith(prefix) and owner(name) == platform.id]


def shared_app(platform: Platform) -> str:
    """Name of the application of the platform's shared replicas."""
    return f"{SHARED_APP}-{platform.id}"


def owner(application: str) -> str:
    """Id of the platform in an application's name. Empty: it has none."""
    found = _MODEL.fullmatch(application) or _SHARED.fullmatch(application)
    return found["id"] if found else ""


def to_config(platform: Platform | None) -> dict[str, Any]:
    """The gateway's platform as part of its `user_config`. None: a gateway of a config file, which has none."""
    if platform is None:
        return {}
    return {"platform": {"id": platform.id, "database": platform.database, "created_by": platform.created_by}}


def of_gateway(running: Mapping[str, Any]) -> Platform | None:
    """The platform that a running gateway belongs to. None: there is no gateway, or it does not say."""
    found = gateway_config(running).get("platform")
    return Platform(**{name: str(found.get(name, "")) for name in ("id", "database", "created_by")}) if found else None


def gateway_config(running: Mapping[str, Any]) -> dict[str, Any]:
    """The `user_config` of a running gateway. Empty: there is none, or it is being deleted."""
    gateway = running.get(GATEWAY_APP)
    if gateway is None or gateway["status"] == "DELETING":
        return {}
    deployment = gateway["deployments"].get(GATEWAY_DEPLOYMENT, {})
    return deployment.get("deployment_config", {}).get("user_config") or {}


def other_platform(platform: Platform | None, records: Iterable[Record], running: Mapping[str, Any]) -> str:
    """The platform that has this cluster, if it is another one, in words. Empty: the cluster is free, or this one's.

    Args:
        platform: this platform. None: it has no database yet, so all that runs is another's.
        records: its endpoints.
        running: every application as Serve reports it, by name.
    """
    own_id = platform.id if platform else ""
    if routes := gateway_config(running).get("routes") or []:
        if running[GATEWAY_APP]["source"] == "declarative":
            return f"a Serve config file, with the endpoints {', '.join(route['name'] for route in routes)}"
        of = of_gateway(running)
        if of is not None:
            return "" if of.id == own_id else f"platform {of}"
        known = {record.name: {record.application, *_applications(record)} for record in records}
        strange = [route["name"] for route in routes if not _leads_to(route) <= known.get(route["name"], set())]
        return (
            f"a platform of an earlier version of maas_ray, with the endpoints {', '.join(strange)}" if strange else ""
        )
    own = {name for record in records for name in (record.application, *_applications(record))}
    others = {
        owner(name): name
        for name, application in _live(running)
        if name not in own and owner(name) not in ("", own_id) and not _of_earlier_version(name, application)
    }
    return "; ".join(f"platform {id}, whose application {name} runs" for id, name in sorted(others.items()))


def _live(running: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, application in running.items():
        if application["source"] == "imperative" and application["status"] != "DELETING":
            yield name, application


def _of_earlier_version(name: str, application: Mapping[str, Any]) -> bool:
    """True for an application of version 0.2.0 whose endpoint's own name ends like an id: `lm-deadbeef`."""
    configs = [one.get("deployment_config", {}).get("user_config") or {} for one in application["deployments"].values()]
    endpoints = [config["route"]["name"] for config in configs if config.get("route")]
    return any(re.fullmatch(rf"model-{re.escape(_slug(endpoint))}-[0-9a-f]{{8}}", name) for endpoint in endpoints)


def _slug(endpoint: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in endpoint.lower())


def _applications(record: Record) -> set[str]:
    return record.route.applications if record.route else set()


def _leads_to(route: Mapping[str, Any]) -> set[str]:
    """The applications of a route as any version wrote it."""
    return {target["application"] for target in route.get("targets") or [route]}
