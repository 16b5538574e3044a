"""`maas deploy --dry-run`: every check that needs no new replicas, and what `maas deploy` would do."""

from maas_ray.database.platform import Platform
from maas_ray.registry.versions import Registry
from maas_ray.serve.deployment import desired, drift, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record
from maas_ray.serve.deployment.gateway_routes import check_gateway, gateway_args
from maas_ray.serve.spec import DeploySpec
from maas_ray.settings import Settings, exists

_NEW = Platform("new", "", "")  # one whose database does not exist yet


def dry_run(spec: DeploySpec, *, settings: Settings | None = None) -> list[str]:
    """Check a spec, its version and its adapters. Nothing is started, and nothing is written.

    A cluster that runs is asked for its state.

    Args:
        spec: the deploy spec.
        settings: of the platform. None: from the environment.

    Returns:
        What `deploy` would do, a line each.

    Raises:
        MaasError: `deploy` would raise the same.
    """
    settings = settings or Settings.from_environment()
    registry = Registry(settings)
    with spec.at("version"):
        version = registry.resolve(spec.version)
    endpoints = Endpoints(settings) if exists(settings.database) else None
    new = desired.wanted(spec, version, registry, endpoints.platform if endpoints else _NEW)
    rollout.shared_args(settings)
    gateway_args(settings)
    connected = control.connected(settings)
    if connected:
        check_gateway(endpoints)
    old = endpoints.get(new.name) if endpoints else None
    running = control.applications() if connected else {}
    resolved = DeploySpec.parse(new.spec, source=f"endpoint {new.name}")
    return [
        f"endpoint {new.name}: {new.version}, {version.task}",
        *_changes(resolved, new, old),
        _action(resolved, new, old, running, connected=connected),
    ]


def _changes(spec: DeploySpec, new: Record, old: Record | None) -> list[str]:
    if old is None:
        return ["  it does not exist yet"]
    return [f"  {change.what}: {change.found} → {change.should}" for change in drift.changes(spec, new.version, old)]


def _action(spec: DeploySpec, new: Record, old: Record | None, running: dict[str, object], *, connected: bool) -> str:
    if not connected:
        return f"would start a cluster, as none is running, then {_start(spec, new)}"
    if new.application not in running:
        stop = "stop the replicas that run, then " if old and old.route and spec.strategy == "recreate" else ""
        return f"would {stop}{_start(spec, new)}"
    if old and desired.same(old, new) and not drift.lost(old, running):
        return "would change nothing"
    return f"would update the running application {new.application}; its replicas stay"


def _start(spec: DeploySpec, new: Record) -> str:
    if new.shared:
        return "start the shared replicas, which load the version"
    replicas = f"{spec.scaling.min_replicas} to {spec.scaling.max_replicas} replicas"
    each = f"{spec.resources.cpus:g} CPUs and {spec.resources.gpus:g} GPUs"
    return f"start the application {new.application}: {replicas}, each with {each}"
