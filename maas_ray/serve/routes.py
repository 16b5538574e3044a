"""What the gateway knows of each model: one route, as it travels in `user_config`.

Made where a version is deployed, from its bundle; the gateway itself opens no bundle.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from maas_ray.registry.bundle import WEIGHTS_SUFFIX
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.serve.spec import ServedModel
from maas_ray.spec import Spec

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
    """What generates, as a replica said when the version was deployed. Empty: nothing does, or it was not asked."""

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


Table = tuple[Route, ...]
_TABLE = TypeAdapter(Table)


def to_config(table: Table) -> dict[str, Any]:
    """A routing table as the gateway's `user_config`; the same table is always the same document."""
    return {"routes": _TABLE.dump_python(tuple(sorted(table, key=lambda route: route.name)), mode="json")}


def from_config(config: dict[str, Any]) -> Table:
    """The routing table in a `user_config`."""
    return _TABLE.validate_python(config["routes"])


def make_route(version: ModelVersion, *, endpoint: str, application: str, timeout_s: float) -> Route:
    """The route to a version; its bundle is opened, and its task loaded, to see that they are whole.

    Raises:
        MaasError: the bundle is missing, damaged, or not the one that was registered.
    """
    bundle = version.open()
    features = [entry.path for entry in bundle.artifact.files if not entry.path.endswith(WEIGHTS_SUFFIX)]
    with tempfile.TemporaryDirectory() as directory:
        task = bundle.load_task(bundle.artifact.fetch(Path(directory), features))
    return Route(
        name=endpoint,
        application=application,
        kind=task.kind,
        task=task.spec.type,
        version=version.reference,
        digest=version.digest,
        created=int(version.created.timestamp()),
        timeout_s=timeout_s,
        **task.signature(),
    )


def resolve_route(model: ServedModel, settings: "Settings") -> Route:
    """The route to a model that a config file names."""
    version = Registry(settings).resolve(model.version)
    return make_route(
        version, endpoint=model.endpoint, application=model.application, timeout_s=model.request_timeout_s
    )
