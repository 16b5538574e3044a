"""The record of a training run in MLflow: its name, its identity and its tags.

A run is named by its spec and its dataset, so that the same `maas train` again finds it and resumes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.registry.versions import TAG_TASK, ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.spec import digest_of
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.lineage import code_revision, package_versions
from maas_ray.training.plan import default_lanes
from maas_ray.training.spec import TrainSpec

TAG_RUN = "maas.run"
TAG_IDENTITY = "maas.identity"
TAG_PACKAGES = "maas.packages"
TAG_TOTAL_STEPS = "maas.total_steps"
TAG_REVISION = "mlflow.source.git.commit"
TAG_LANES = "maas.lanes"
TAG_DATASET = "maas.dataset"

# Fields that do not change what a run computes: its name, how it is watched, and the machines it runs on.
_NOT_COMPUTED: dict[str, Any] = {
    **dict.fromkeys(("run", "alias", "gate", "dataset", "log_every_steps", "max_failures", "checkpoint"), True),
    **dict.fromkeys(("workers", "cpus_per_worker", "device", "micro_batch_size"), True),
    "network": {"gradient_checkpointing"},
    "validation": {"place"},
}


def identity_of(spec: TrainSpec, fingerprint: str) -> str:
    """Digest of everything that decides what a run computes.

    Args:
        spec: the run's.
        fingerprint: the dataset's.
    """
    document: dict[str, Any] = {
        "spec": spec.model_dump(mode="json", exclude=_NOT_COMPUTED),
        "batch_size": batch_geometry(spec, spec.max_workers).batch,
        "dataset": fingerprint,
    }
    if spec.network.own_source is not None:
        document["source"] = spec.network.own_source.digest
    return digest_of(document)


@dataclass(frozen=True)
class TrainingRun:
    """A run that is about to start or to resume."""

    name: str
    run_id: str
    tags: dict[str, str]
    spec: TrainSpec
    dataset: PreparedDataset
    settings: Settings
    registry: Registry

    @property
    def home(self) -> str:
        """URI of the run's directory, which holds its checkpoints."""
        return run_home(self.settings, self.spec.model, self.name)

    @property
    def lanes(self) -> int:
        """Lanes of the run's plan, fixed when it began."""
        return int(self.tags[TAG_LANES])

    def set_total_steps(self, steps: int) -> None:
        self.registry.client.set_tag(self.run_id, TAG_TOTAL_STEPS, str(steps))

    def version(self) -> ModelVersion | None:
        """The version that this run ended with, if it is registered; its bundle is whole then."""
        return version_of(self.registry, self.spec.model, self.run_id)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep MLflow's status of the run up to date while the block runs."""
        client = self.registry.client
        client.update_run(self.run_id, status="RUNNING")
        try:
            yield
        except BaseException as error:
            client.set_terminated(self.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(self.run_id, "FINISHED")


@dataclass(frozen=True)
class RunKey:
    """A run as a spec and a dataset name it, before it is looked up."""

    name: str
    identity: str

    @classmethod
    def of(cls, spec: TrainSpec, dataset: PreparedDataset) -> "RunKey":
        identity = identity_of(spec, dataset.fingerprint)
        return cls(spec.run or f"{spec.model}-{identity[:8]}", identity)

    def find(self, spec: TrainSpec, registry: Registry) -> Any:
        """MLflow's run of this name, or None.

        Raises:
            SpecError: a run of this name was started from another spec or dataset.
        """
        experiment = registry.client.get_experiment_by_name(spec.model)
        if experiment is None:
            return None
        filter_string = f"tags.`{TAG_RUN}` = '{self.name}'"
        runs = registry.client.search_runs([experiment.experiment_id], filter_string, max_results=1)
        if runs and runs[0].data.tags.get(TAG_IDENTITY) != self.identity:
            raise spec.refuse(
                "run",
                f"{self.name!r} was started from another spec or dataset. Choose another name, or remove `run`.",
                code="run_differs",
            )
        return runs[0] if runs else None


def open_run(spec: TrainSpec, dataset: PreparedDataset, settings: Settings) -> TrainingRun:
    """The run of a spec and a dataset; a new one if MLflow does not have it.

    Raises:
        SpecError: a run of this name was started from another spec or dataset.
    """
    key, registry = RunKey.of(spec, dataset), Registry(settings)
    run = key.find(spec, registry)
    if run is not None:
        run_id, tags = run.info.run_id, run.data.tags
    else:
        run_id, tags = _create(key, spec, dataset, registry)
    return TrainingRun(key.name, run_id, tags, spec, dataset, settings, registry)


def _create(key: RunKey, spec: TrainSpec, dataset: PreparedDataset, registry: Registry) -> tuple[str, dict[str, str]]:
    client = registry.client
    experiment = client.get_experiment_by_name(spec.model)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(spec.model)
    tags = {
        TAG_RUN: key.name,
        TAG_TASK: dataset.task.spec.type,
        TAG_IDENTITY: key.identity,
        TAG_REVISION: code_revision(Path.cwd()),
        TAG_PACKAGES: json.dumps(package_versions()),
        TAG_LANES: str(default_lanes(batch_geometry(spec, spec.max_workers).batch, spec.max_workers)),
        TAG_DATASET: dataset.fingerprint,
    }
    run_id = client.create_run(experiment_id, run_name=key.name, tags=tags).info.run_id
    for name, value in _parameters(spec.model_dump(mode="json", exclude={"run", "alias", "gate", "dataset"})):
        client.log_param(run_id, name, value)
    return run_id, tags


def _parameters(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested document as MLflow's flat parameters: `network.hidden_size`."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def version_of(registry: Registry, model: str, run_id: str) -> ModelVersion | None:
    """The version that a run ended with, if it is registered; its bundle is checked."""
    for version in registry.versions(model):
        if version.lineage.run_id == run_id:
            version.open()
            return version
    return None


def runs_home(settings: Settings, model: str) -> str:
    """The directory of all training runs of a model."""
    return storage.join(settings.storage, "runs", model)


def run_home(settings: Settings, model: str, name: str) -> str:
    """The directory of a training run, which holds its checkpoints."""
    return storage.join(runs_home(settings, model), name)
