"""The record of a training run in MLflow: its name, its identity and its tags.

A run is named by its spec and its dataset, so that the same `maas train` again finds it and resumes.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.errors import ConflictError, SpecError, StorageError
from maas_ray.registry.versions import TAG_TASK, ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say
from maas_ray.training.checkpoints.catalog import latest
from maas_ray.training.checkpoints.position import Position, RowOrder
from maas_ray.training.deepspeed.batch import batch_geometry
from maas_ray.training.plan import default_lanes
from maas_ray.training.preflight import make_plan
from maas_ray.training.runs.identity import couples_rows, identity_of
from maas_ray.training.runs.lineage import code_revision, package_versions
from maas_ray.training.spec import TrainSpec

TAG_RUN = "maas.run"
TAG_IDENTITY = "maas.identity"
TAG_PACKAGES = "maas.packages"
TAG_TOTAL_STEPS = "maas.total_steps"
TAG_REVISION = "mlflow.source.git.commit"
TAG_LANES = "maas.lanes"
TAG_DATASET = "maas.dataset"
TAG_INTERVALS = "maas.validate_every"

_MAX_LANES = 1024
_MAX_PARAMETER = 250
_NOT_IN_A_PARAMETER = re.compile(r"[^\w\-. /:]")


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
    lanes: int
    """Lanes of the run's plan, fixed when it began."""

    @property
    def home(self) -> str:
        """URI of the run's directory, which holds its checkpoints."""
        return run_home(self.settings, self.spec.model, self.name)

    @property
    def identity(self) -> str:
        """Identity under which the run is recorded."""
        return self.tags[TAG_IDENTITY]

    def note_start(self, total_steps: int) -> None:
        """Record how long this start is to train, and how often it validates."""
        run = self.registry.client.get_run(self.run_id)
        before = intervals(run) if TAG_INTERVALS in run.data.tags or latest(self.home) else set()
        every = sorted(before | {self.spec.validate_every})
        self.registry.client.set_tag(self.run_id, TAG_TOTAL_STEPS, str(total_steps))
        self.registry.client.set_tag(self.run_id, TAG_INTERVALS, ",".join(map(str, every)))

    def version(self) -> ModelVersion | None:
        """The version that this run ended with under its `select`, if it is registered; its bundle is whole then."""
        return version_of(self.registry, self.spec, self.run_id)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep MLflow's status of the run up to date while the block runs."""
        self._set_status("RUNNING")
        try:
            yield
        except BaseException as error:
            self._set_status("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._set_status("FINISHED")

    def _set_status(self, status: str) -> None:
        """Set MLflow's status of the run. It is only shown, so a failure must not end or hide anything."""
        from mlflow.exceptions import MlflowException

        client = self.registry.client
        try:
            if status == "RUNNING":
                client.update_run(self.run_id, status=status)
            else:
                client.set_terminated(self.run_id, status)
        except (StorageError, MlflowException) as error:
            say(f"the status {status} of run {self.name} could not be recorded: {error}")


@dataclass(frozen=True)
class RunKey:
    """A run as a spec and a dataset name it, before it is looked up."""

    names: tuple[str, ...]
    """Names that it may have, the first one if it is new."""
    equal: tuple[str, ...]
    """Identities that it may have: its own, and the one that version 0.2 gave it."""
    selected: tuple[str, ...]
    """Those of the same training with the other `checkpoint.select`, which may have found the result already."""

    @classmethod
    def of(cls, spec: TrainSpec, dataset: PreparedDataset) -> "RunKey":
        coupled = couples_rows(spec.network, dataset.task)
        select: Any = "last" if spec.checkpoint.select == "best" else "best"
        other = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"select": select})})

        def identities(spec: TrainSpec) -> tuple[str, ...]:
            ways = (True, False)
            return tuple(identity_of(spec, dataset.fingerprint, couples_rows=coupled, spares=way) for way in ways)

        equal, selected = identities(spec), identities(other)
        names = (spec.run or f"{spec.model}-{identity[:8]}" for identity in (*equal, *selected))
        return cls(tuple(dict.fromkeys(names)), equal, selected)

    @property
    def name(self) -> str:
        """The name of the run if it is new."""
        return self.names[0]

    @property
    def identity(self) -> str:
        """The identity of the run if it is new."""
        return self.equal[0]

    @property
    def identities(self) -> set[str]:
        """Identities under which this training may be recorded."""
        return {*self.equal, *self.selected}

    def find(self, spec: TrainSpec, registry: Registry) -> Any:
        """MLflow's run of this training, or None.

        Raises:
            SpecError: a run of this name was started from another spec or dataset.
        """
        experiment = active_experiment(registry, spec.model)
        if experiment is None:
            return None
        for name in self.names:
            filter_string = f"tags.`{TAG_RUN}` = '{name}'"
            runs = registry.client.search_runs([experiment.experiment_id], filter_string, max_results=1)
            if runs and self._same(spec, runs[0]):
                return runs[0]
            if runs and name == self.name:
                raise differs(spec, name)
        return None

    def _same(self, spec: TrainSpec, run: Any) -> bool:
        """True if a run computed what this key names, and was validated at the steps that `select` needs."""
        identity = run.data.tags.get(TAG_IDENTITY)
        if identity in self.equal:
            return True
        return identity in self.identities and (
            spec.checkpoint.select == "last" or intervals(run) == {spec.validate_every}
        )


def differs(spec: TrainSpec, name: str) -> SpecError:
    """The error for a name that another training has."""
    return spec.refuse(
        "run",
        f"{name!r} was started from another spec or dataset. Choose another name, or remove `run`.",
        code="run_differs",
    )


def intervals(run: Any) -> set[int]:
    """Steps between validations in all starts of a run."""
    if recorded := run.data.tags.get(TAG_INTERVALS):
        return {int(steps) for steps in recorded.split(",")}
    parameters = run.data.params  # version 0.2 recorded those of the first start alone
    steps = (parameters.get(f"{part}.every_steps", "None") for part in ("validation", "checkpoint"))
    return {int(next((step for step in steps if step != "None"), 0))}


def active_experiment(registry: Registry, model: str) -> Any:
    """MLflow's experiment of a model's runs, or None.

    Raises:
        ConflictError: it was deleted in MLflow, which keeps the name.
    """
    experiment = registry.client.get_experiment_by_name(model)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise ConflictError(
            f"MLflow's experiment {model!r} is deleted, so no run of this model can be recorded. Restore it "
            f"(mlflow experiments restore --experiment-id {experiment.experiment_id}), or choose another `model`.",
            code="experiment_deleted",
        )
    return experiment


def open_run(
    spec: TrainSpec, dataset: PreparedDataset, settings: Settings, *, key: RunKey | None = None
) -> TrainingRun:
    """The run of a spec and a dataset; a new one if MLflow does not have it.

    If MLflow lost the run, its newest checkpoint still decides the order of rows.

    Raises:
        SpecError: a run of this name was started from another spec or dataset.
    """
    key, registry = key or RunKey.of(spec, dataset), Registry(settings)
    found = key.find(spec, registry)
    name = found.data.tags[TAG_RUN] if found else key.name
    reached = latest(run_home(settings, spec.model, name))
    lanes = int(found.data.tags[TAG_LANES]) if found else None
    if reached is not None:
        lanes = lanes_of(reached, spec, dataset, key, recorded=lanes)
    if found is not None:
        run_id, tags = found.info.run_id, found.data.tags
    else:
        run_id, tags = _create(key, spec, dataset, registry, lanes)
    return TrainingRun(name, run_id, tags, spec, dataset, settings, registry, lanes=lanes or int(tags[TAG_LANES]))


def lanes_of(reached: Position, spec: TrainSpec, dataset: PreparedDataset, key: RunKey, *, recorded: int | None) -> int:
    """The lanes of a run that resumes from a checkpoint.

    Args:
        reached: the checkpoint's position.
        spec: the run's.
        dataset: its dataset.
        key: its name and identity.
        recorded: lanes that MLflow has. None: MLflow does not know the run.

    Raises:
        SpecError: the checkpoint is of another training, or its order of rows is not known.
    """
    order = reached.order
    if order is None:  # saved by version 0.2
        if recorded is None and (recorded := _proved_lanes(reached, spec, dataset)) is None:
            raise differs(spec, key.name)
        return recorded
    batch_size = batch_geometry(spec, spec.max_workers).batch
    if order != RowOrder(
        dataset=dataset.fingerprint, batch_size=batch_size, lanes=order.lanes, epochs=spec.epochs, seed=spec.seed
    ) or (reached.identity and reached.identity not in key.identities):
        raise differs(spec, key.name)
    return order.lanes


def _proved_lanes(reached: Position, spec: TrainSpec, dataset: PreparedDataset) -> int | None:
    """The number of lanes with which the plan has a checkpoint's ledger. None: no number has."""
    batch_size = batch_geometry(spec, spec.max_workers).batch
    for lanes in (number for number in range(1, min(batch_size, _MAX_LANES) + 1) if batch_size % number == 0):
        if make_plan(spec, dataset, lanes=lanes).ledger_at(reached.step) == reached.ledger:
            return lanes
    return None


def _create(
    key: RunKey, spec: TrainSpec, dataset: PreparedDataset, registry: Registry, lanes: int | None
) -> tuple[str, dict[str, str]]:
    client = registry.client
    batch_size = batch_geometry(spec, spec.max_workers).batch
    tags = {
        TAG_RUN: key.name,
        TAG_TASK: dataset.task.spec.type,
        TAG_IDENTITY: key.identity,
        TAG_REVISION: code_revision(Path.cwd()),
        TAG_PACKAGES: json.dumps(package_versions()),
        TAG_LANES: str(lanes or default_lanes(batch_size, spec.max_workers)),
        TAG_DATASET: dataset.fingerprint,
    }
    run_id = client.create_run(_experiment_id(registry, spec.model), run_name=key.name, tags=tags).info.run_id
    for name, value in _parameters(spec.model_dump(mode="json", exclude={"run", "alias", "gate", "dataset"})):
        client.log_param(run_id, name, value)
    return run_id, tags


def _experiment_id(registry: Registry, model: str) -> str:
    """The id of a model's experiment, created if necessary; another process may create it at the same moment."""
    from mlflow.exceptions import MlflowException

    experiment = active_experiment(registry, model)
    if experiment is None:
        try:
            return str(registry.client.create_experiment(model))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = active_experiment(registry, model)
    return str(experiment.experiment_id)


def _parameters(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested document as MLflow's flat parameters: `network.hidden_size`."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield _NOT_IN_A_PARAMETER.sub("_", prefix + key)[:_MAX_PARAMETER], value


def version_of(registry: Registry, spec: TrainSpec, run_id: str) -> ModelVersion | None:
    """The version that a run ended with under the spec's `select`, if it is registered; its bundle is checked."""
    for version in registry.versions(spec.model):
        if version.lineage.run_id == run_id and selected_by(version) == spec.checkpoint.select:
            version.open()
            return version
    return None


def selected_by(version: ModelVersion) -> str:
    """The `checkpoint.select` by which a version was chosen among the checkpoints of its run."""
    checkpoint: Any = version.lineage.spec.get("checkpoint", {})
    return str(checkpoint.get("select", "last"))


def runs_home(settings: Settings, model: str) -> str:
    """The directory of all training runs of a model."""
    return storage.join(settings.storage, "runs", model)


def run_home(settings: Settings, model: str, name: str) -> str:
    """The directory of a training run, which holds its checkpoints."""
    return storage.join(runs_home(settings, model), name)
