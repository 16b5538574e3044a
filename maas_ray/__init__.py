"""maas_ray: train, version and serve models on one Ray cluster.

    from maas_ray import TrainSpec, train

    version = train(TrainSpec.from_yaml("train.yaml"))

Each verb is a function of a spec, a `maas` command and a script in `jobs/`. Importing this package imports nothing
heavy, and nothing inside the package imports from here.
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
    from maas_ray.evaluation.spec import EvaluateSpec
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
    "EvaluateSpec": "maas_ray.evaluation.spec",
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
    """Turn raw data into a prepared dataset, or reuse the dataset of the same spec and input."""
    from maas_ray.data.prepare import prepare

    return prepare(spec, fresh=fresh, settings=settings)


def train(spec: "TrainSpec", *, settings: "Settings | None" = None) -> "ModelVersion":
    """Train a network on a prepared dataset and register the result as a version."""
    from maas_ray.training.run import train

    return train(spec, settings=settings)


def evaluate(spec: "EvaluateSpec", *, settings: "Settings | None" = None) -> "Report":
    """Measure a version on a split of a dataset."""
    from maas_ray.evaluation.run import evaluate

    return evaluate(spec, settings=settings)


def predict(spec: "PredictSpec", *, settings: "Settings | None" = None) -> "Predictions":
    """Predict every row of files with a version. Resumes an interrupted run into the same output."""
    from maas_ray.batch.run import predict

    return predict(spec, settings=settings)


def deploy(spec: "DeploySpec", *, settings: "Settings | None" = None) -> "Endpoint":
    """Serve a version at an endpoint that scales with its load."""
    from maas_ray.serve.deployment.verbs import deploy

    return deploy(spec, settings=settings)


def promote(
    version: str, alias: str, *, gates: "Sequence[str]" = (), settings: "Settings | None" = None
) -> "list[Endpoint]":
    """Point an alias at a version and update every endpoint that was deployed from it, if all gates pass."""
    from maas_ray.serve.deployment.verbs import promote

    return promote(version, alias, gates=gates, settings=settings)


def rollback(name: str, *, to: int | None = None, settings: "Settings | None" = None) -> "Endpoint":
    """Serve an earlier version of an endpoint again."""
    from maas_ray.serve.deployment.verbs import rollback

    return rollback(name, to=to, settings=settings)


def undeploy(name: str, *, settings: "Settings | None" = None) -> None:
    """Remove an endpoint. Its version stays registered."""
    from maas_ray.serve.deployment.verbs import undeploy

    undeploy(name, settings=settings)


def endpoints(*, settings: "Settings | None" = None) -> "list[Endpoint]":
    """All endpoints with version, state and replicas."""
    from maas_ray.serve.deployment.verbs import endpoints

    return endpoints(settings=settings)


def history(name: str, *, settings: "Settings | None" = None) -> "list[Served]":
    """The versions that an endpoint has served, newest first."""
    from maas_ray.serve.deployment.verbs import history

    return history(name, settings=settings)


def diff(spec: "DeploySpec | None" = None, *, settings: "Settings | None" = None) -> "list[Difference]":
    """Differences between the desired state and the cluster or, with a spec, between the spec and the desired state."""
    from maas_ray.serve.deployment.verbs import diff

    return diff(spec, settings=settings)


def reconcile(*, settings: "Settings | None" = None) -> "list[Outcome]":
    """Bring the cluster to the desired state, once, as after a restart of the cluster or a deployer that died."""
    from maas_ray.serve.deployment.reconciler import reconcile

    return reconcile(settings=settings)
