"""maas_ray: Model-as-a-Service on Ray. From data to a versioned, autoscaling API, on one cluster.

    from maas_ray import TrainSpec, train

    version = train(TrainSpec.from_yaml("train.yaml"))

Each verb is one function of one spec, one `maas` command and one script in `jobs/`. Importing this package
imports nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maas_ray.version import __version__ as __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maas_ray.batch.run import Predictions
    from maas_ray.batch.spec import PredictSpec
    from maas_ray.data.dataset import PreparedDataset
    from maas_ray.data.spec import PrepareSpec
    from maas_ray.evaluation.report import Report
    from maas_ray.evaluation.run import EvaluateSpec
    from maas_ray.registry.versions import ModelVersion, Registry
    from maas_ray.serve.deployment.drift import Difference
    from maas_ray.serve.deployment.endpoints import Served
    from maas_ray.serve.deployment.reconcile import Outcome
    from maas_ray.serve.deployment.verbs import Endpoint
    from maas_ray.serve.spec import DeploySpec
    from maas_ray.settings import Settings
    from maas_ray.training.spec import TrainSpec

_HOMES = {
    "PrepareSpec": "maas_ray.data.spec",
    "TrainSpec": "maas_ray.training.spec",
    "EvaluateSpec": "maas_ray.evaluation.run",
    "PredictSpec": "maas_ray.batch.spec",
    "DeploySpec": "maas_ray.serve.spec",
    "Registry": "maas_ray.registry.versions",
    "Settings": "maas_ray.settings",
}
__all__ = ["DeploySpec", "EvaluateSpec", "PredictSpec", "PrepareSpec", "Registry", "Settings", "TrainSpec"]
__all__ += ["deploy", "diff", "endpoints", "evaluate", "history", "predict", "prepare", "promote", "reconcile"]
__all__ += ["rollback", "train", "undeploy"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maas_ray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def prepare(spec: "PrepareSpec", *, fresh: bool = False, settings: "Settings | None" = None) -> "PreparedDataset":
    """Turn raw data into a prepared dataset, or find the one that this spec and input gave before."""
    from maas_ray.data.prepare import prepare

    return prepare(spec, fresh=fresh, settings=settings)


def train(spec: "TrainSpec", *, settings: "Settings | None" = None) -> "ModelVersion":
    """Train a network on a prepared dataset and register the result as one version."""
    from maas_ray.training.run import train

    return train(spec, settings=settings)


def evaluate(spec: "EvaluateSpec", *, settings: "Settings | None" = None) -> "Report":
    """Measure a version on a split of a dataset."""
    from maas_ray.evaluation.run import evaluate

    return evaluate(spec, settings=settings)


def predict(spec: "PredictSpec", *, settings: "Settings | None" = None) -> "Predictions":
    """Have a version answer every row of files; goes on where an earlier run into the same output stopped."""
    from maas_ray.batch.run import predict

    return predict(spec, settings=settings)


def deploy(spec: "DeploySpec", *, settings: "Settings | None" = None) -> "Endpoint":
    """Bring a version up behind a public name, autoscaling."""
    from maas_ray.serve.deployment.verbs import deploy

    return deploy(spec, settings=settings)


def promote(
    version: str, alias: str, *, gates: "Sequence[str]" = (), settings: "Settings | None" = None
) -> "list[Endpoint]":
    """Bring every endpoint that was deployed from an alias to a version, and the alias with them, if gates let it."""
    from maas_ray.serve.deployment.verbs import promote

    return promote(version, alias, gates=gates, settings=settings)


def rollback(name: str, *, to: int | None = None, settings: "Settings | None" = None) -> "Endpoint":
    """Serve again what an endpoint served before."""
    from maas_ray.serve.deployment.verbs import rollback

    return rollback(name, to=to, settings=settings)


def undeploy(name: str, *, settings: "Settings | None" = None) -> None:
    """Take an endpoint down; its version stays registered."""
    from maas_ray.serve.deployment.verbs import undeploy

    undeploy(name, settings=settings)


def endpoints(*, settings: "Settings | None" = None) -> "list[Endpoint]":
    """What is served: public names, versions, states, replicas."""
    from maas_ray.serve.deployment.verbs import endpoints

    return endpoints(settings=settings)


def history(name: str, *, settings: "Settings | None" = None) -> "list[Served]":
    """What an endpoint serves and served before, newest first."""
    from maas_ray.serve.deployment.verbs import history

    return history(name, settings=settings)


def diff(spec: "DeploySpec | None" = None, *, settings: "Settings | None" = None) -> "list[Difference]":
    """Where what runs is not what should; or, with a spec, where what should is not what it asks for."""
    from maas_ray.serve.deployment.verbs import diff

    return diff(spec, settings=settings)


def reconcile(*, settings: "Settings | None" = None) -> "list[Outcome]":
    """Make what runs what should, once: after a cluster's restart, or after a deployer that died."""
    from maas_ray.serve.deployment.reconcile import reconcile

    return reconcile(settings=settings)
