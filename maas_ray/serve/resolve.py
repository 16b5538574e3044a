"""Routes from registered versions: the bundle is opened once, here, so that no gateway has to."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from maas_ray.errors import DeploymentError
from maas_ray.registry.bundle import WEIGHT_SUFFIXES
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.engines import lora
from maas_ray.serve.routes import AdapterRoute, Route, Target
from maas_ray.serve.spec import ServedModel, ServingOptions, SharedModel
from maas_ray.settings import Settings


def make_route(
    version: ModelVersion,
    *,
    endpoint: str,
    application: str,
    timeout_s: float,
    adapters: Mapping[str, ModelVersion] = MappingProxyType({}),
) -> Route:
    """The route to a version. Its bundle is opened and its task loaded, to check that they are intact.

    Raises:
        MaasError: a bundle is missing, damaged, or not the one that was registered; an adapter does not fit.
    """
    bundle = version.open()
    if lora.is_adapter(bundle):
        raise DeploymentError(
            f"{version.reference} is a LoRA adapter, which is not a model by itself; deploy its base with "
            f"`adapters: {{NAME: {version.reference}}}`.",
            code="adapter_without_base",
        )
    features = [entry.path for entry in bundle.artifact.files if not entry.path.endswith(WEIGHT_SUFFIXES)]
    with tempfile.TemporaryDirectory() as directory:
        task = bundle.load_task(bundle.artifact.fetch(Path(directory), features))
    if adapters and task.kind != "generate":
        raise DeploymentError(
            f"{version.reference} does {task.spec.type}; adapters are for models that generate text.",
            code="adapters_unsupported",
        )
    for adapter in adapters.values():
        lora.check(adapter, version)
    return Route(
        name=endpoint,
        targets=(Target(application=application, version=version.reference),),
        kind=task.kind,
        task=task.spec.type,
        version=version.reference,
        digest=version.digest,
        created=int(version.created.timestamp()),
        timeout_s=timeout_s,
        adapters=tuple(_adapter_route(name, adapter) for name, adapter in sorted(adapters.items())),
        **task.signature(),
    )


def share(route: Route, version: ModelVersion, options: ServingOptions) -> Route:
    """The same route to shared replicas."""
    weights = sum(entry.size for entry in version.open().artifact.files if entry.path.endswith(WEIGHT_SUFFIXES))
    # Options of the gateway and of Serve are not part of the model: when they change, the model stays loaded.
    of_the_model = set(ServingOptions.model_fields) - {"scaling", "resources", "request_timeout_s"}
    model = SharedModel(
        uri=version.uri,
        digest=version.digest,
        name=route.name,
        number=route.number,
        kind=route.kind,
        weights=weights,
        options=ServingOptions.model_validate(options.model_dump(include=of_the_model)),
    )
    return route.with_target(shared=model.id)


def resolve_route(model: ServedModel, settings: Settings) -> Route:
    """The route to a model of a gateway's config file."""
    registry = Registry(settings)
    version = registry.resolve(model.version)
    route = make_route(
        version,
        endpoint=model.endpoint,
        application=model.application,
        timeout_s=model.request_timeout_s,
        adapters={name: registry.resolve(version) for name, version in model.adapters.items()},
    )
    return share(route, version, ServingOptions()) if model.replicas == "shared" else route


def _adapter_route(name: str, version: ModelVersion) -> AdapterRoute:
    return AdapterRoute(
        name=name,
        version=version.reference,
        uri=version.uri,
        digest=version.digest,
        created=int(version.created.timestamp()),
    )
