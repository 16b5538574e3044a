"""What the gateway knows of each model: one route, as it travels in `user_config`.

Made where a version is deployed, from its bundle; the gateway itself opens no bundle.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from maas_ray.errors import DeploymentError
from maas_ray.registry.bundle import WEIGHT_SUFFIXES
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.engines import lora
from maas_ray.serve.spec import ServedModel, ServingOptions, SharedModel
from maas_ray.spec import Spec, digest_of

if TYPE_CHECKING:
    from maas_ray.settings import Settings


class Tensor(Spec):
    """A tensor that a request or an answer carries, in the Open Inference Protocol's words."""

    name: str
    """Its name."""
    datatype: str
    """Such as `FP32`."""
    shape: tuple[int, ...]
    """-1 for any; the first is the batch."""


class AdapterRoute(Spec):
    """A LoRA adapter of the model that a route leads to."""

    name: str
    """Its name; public is `MODEL:NAME`."""
    version: str
    """The registered version, `name/number`."""
    uri: str
    """The adapter's bundle."""
    digest: str
    """The bundle's digest."""
    created: int
    """When the version was registered, Unix seconds."""


class Route(Spec):
    """One public model name, and what stands behind it."""

    name: str
    """Public model name."""
    application: str
    """Serve application that answers."""
    kind: str
    """`generate` or `predict`, see `maas_ray.tasks.Task`."""
    task: str
    """The task's type."""
    version: str
    """The registered version, `name/number`."""
    digest: str
    """The bundle's digest."""
    created: int
    """When the version was registered, Unix seconds."""
    inputs: tuple[Tensor, ...]
    """What a request carries."""
    outputs: tuple[Tensor, ...]
    """What an answer carries."""
    timeout_s: float
    """Longest that one request may take, seconds."""
    engine: str = ""
    """What computes, as a replica said when the version was deployed. Empty: it was not asked."""
    adapters: tuple[AdapterRoute, ...] = ()
    """LoRA adapters that can be asked of it too."""
    adapter: AdapterRoute | None = None
    """The adapter that this route asks for, see `expanded`."""
    shared: str = ""
    """What a shared replica loads to answer, the id of a `SharedModel`. Empty: its application serves nothing else."""

    @property
    def number(self) -> str:
        """The version's number, which the Open Inference Protocol calls the version."""
        return self.version.rpartition("/")[2]

    def metadata(self) -> dict[str, Any]:
        """The model in the Open Inference Protocol's words."""
        return {
            "name": self.name,
            "versions": [self.number],
            "platform": f"maas_ray_{self.task}",
            **self.model_dump(mode="json", include={"inputs", "outputs"}),
        }

    @property
    def parent(self) -> str | None:
        """Of an adapter's route, the model that it is added to."""
        return self.name.rpartition(":")[0] if self.adapter else None

    def expanded(self) -> "Iterator[Route]":
        """Itself, and a route for each of its adapters."""
        yield self
        for adapter in self.adapters:
            yield self.model_copy(
                update={
                    "name": f"{self.name}:{adapter.name}",
                    "version": adapter.version,
                    "digest": digest_of([self.digest, adapter.digest]),
                    "created": adapter.created,
                    "adapters": (),
                    "adapter": adapter,
                }
            )


Table = tuple[Route, ...]
_TABLE = TypeAdapter(Table)


def direct_path(endpoint: str) -> str:
    """The prefix of the paths that name a model."""
    return f"/v2/models/{endpoint}"


def to_config(table: Table) -> dict[str, Any]:
    """A routing table as the gateway's `user_config`; the same table is always the same document."""
    return {"routes": _TABLE.dump_python(tuple(sorted(table, key=lambda route: route.name)), mode="json")}


def from_config(config: dict[str, Any]) -> Table:
    """The routing table in a `user_config`."""
    return _TABLE.validate_python(config["routes"])


def make_route(
    version: ModelVersion,
    *,
    endpoint: str,
    application: str,
    timeout_s: float,
    adapters: Mapping[str, ModelVersion] = MappingProxyType({}),
) -> Route:
    """The route to a version; its bundle is opened, and its task loaded, to see that they are whole.

    Raises:
        MaasError: a bundle is missing, damaged, or not the one that was registered; an adapter does not fit.
    """
    bundle = version.open()
    if lora.is_adapter(bundle):
        raise DeploymentError(
            f"{version.reference} is a LoRA adapter and no model by itself; deploy its base with "
            f"`adapters: {{NAME: {version.reference}}}`."
        )
    features = [entry.path for entry in bundle.artifact.files if not entry.path.endswith(WEIGHT_SUFFIXES)]
    with tempfile.TemporaryDirectory() as directory:
        task = bundle.load_task(bundle.artifact.fetch(Path(directory), features))
    if adapters and task.kind != "generate":
        raise DeploymentError(f"{version.reference} does {task.spec.type}; adapters are for models that generate text.")
    for adapter in adapters.values():
        lora.check(adapter, version)
    return Route(
        name=endpoint,
        application=application,
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
    """The same route, to shared replicas."""
    weights = sum(entry.size for entry in version.open().artifact.files if entry.path.endswith(WEIGHT_SUFFIXES))
    # What the gateway or Serve keeps to is not the model's: when it changes, the model stays loaded.
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
    return route.model_copy(update={"shared": model.id})


def resolve_route(model: ServedModel, settings: "Settings") -> Route:
    """The route to a model that a config file names."""
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
