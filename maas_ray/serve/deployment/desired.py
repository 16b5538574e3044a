"""The desired state of an endpoint, computed from its spec: a record with its application and its route."""

from dataclasses import replace
from functools import cache

from maas_ray.database.platform import Platform
from maas_ray.errors import SpecError
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.deployment.endpoints import Record, State
from maas_ray.serve.deployment.ownership import model_app, shared_app
from maas_ray.serve.engines.vllm import chosen
from maas_ray.serve.resolve import make_route, share
from maas_ray.serve.spec import DeploySpec
from maas_ray.spec import digest_of
from maas_ray.version import compute_code_version

# Options that need no new replicas: running replicas accept them, or they only matter while deploying.
_LIVE_OPTIONS = {
    "endpoint",
    "version",
    "scaling",
    "max_queued_requests",
    "request_timeout_s",
    "strategy",
    "placement_timeout_s",
    "startup_timeout_s",
    "adapters",
    "smoke",
    "direct",
}


def wanted(spec: DeploySpec, version: ModelVersion, registry: Registry, platform: Platform) -> Record:
    """The record of an endpoint that serves a version as a spec says, with its adapters' aliases resolved to numbers.

    Raises:
        MaasError: a bundle is missing, damaged, or not the one that was registered; an adapter does not fit; or the
            spec has options that its task does not support.
    """
    name = spec.endpoint or version.name
    adapters = resolve_adapters(spec, registry)
    pinned = {adapter: resolved.reference for adapter, resolved in adapters.items()}
    spec = chosen(spec, version.task).model_copy(update={"endpoint": name, "adapters": pinned})
    shared = spec.replicas == "shared"
    identity = _identity(spec, version.reference, version.uri, version.digest)
    application = shared_app(platform) if shared else model_app(platform, name, identity)
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
        route=share(route, version, spec) if shared else route,
        state=State.SERVING,
    )


def resolve_adapters(spec: DeploySpec, registry: Registry) -> dict[str, ModelVersion]:
    """The versions that a spec's adapters resolve to now, by name.

    Raises:
        NotFoundError: there is no such version.
    """
    resolved = {}
    for name, version in spec.adapters.items():
        with spec.at(f"adapters.{name}"):
            resolved[name] = registry.resolve(version)
    return resolved


def same(old: Record, new: Record) -> bool:
    """True if an endpoint's present record already is the desired one."""
    if old.route and new.route:  # the engine is known only when it runs
        new = replace(new, route=new.route.model_copy(update={"engine": old.route.engine}))
    return old == replace(new, revision=old.revision, problem=old.problem, updated=old.updated)


def is_outdated(record: Record, platform: Platform) -> bool:
    """True if the endpoint's own replicas run code of another version of the package."""
    if record.state is not State.SERVING or record.shared:
        return False
    try:
        spec = DeploySpec.parse(record.spec, source=f"endpoint {record.name}")
    except SpecError:  # an earlier version had other fields
        return True
    identity = _identity(spec, record.version, record.uri, record.digest)
    return record.application != model_app(platform, record.name, identity)


def _identity(spec: DeploySpec, reference: str, uri: str, digest: str) -> str:
    """A digest of everything that needs new replicas when it changes."""
    return digest_of(
        {
            "endpoint": spec.endpoint,
            "version": reference,
            "bundle": [uri, digest],
            "options": spec.model_dump(mode="json", exclude=_LIVE_OPTIONS),
            "code": code_version(),
        }
    )


@cache
def code_version() -> str:
    """A digest of the code that this process runs. Replicas that run other code are replaced."""
    return compute_code_version()
