"""`evaluate`: a version's metrics on a split of a prepared dataset, measured with the task's own metrics.

A few actors hold the model, read a row group at a time and tell what came of each row; the driver makes metrics of it.
"""

from dataclasses import dataclass

from pydantic import Field

from maas_ray.cluster import connect
from maas_ray.console import progress, say
from maas_ray.data.dataset import PreparedDataset, RowGroup, open_dataset
from maas_ray.errors import DataError, NotFoundError
from maas_ray.registry.bundle import Bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.spec import Spec
from maas_ray.tasks import Task
from maas_ray.tasks.base import Outcomes, joined, outcomes_of


class EvaluateSpec(Spec):
    """`maas evaluate SPEC.yaml`: measure a registered version."""

    version: str
    """The version: `name@alias`, `name/number`, or `name` for the newest."""
    dataset: str | None = None
    """Prepared dataset. None: the one the version was trained on."""
    split: str = "test"
    """Split to measure on: `train`, `validation` or `test`."""
    batch_size: int = Field(16, ge=1)
    """Rows in one forward pass."""
    workers: int = Field(1, ge=1)
    """Actors that each hold the model."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """Logical CPUs that Ray reserves for each; also its number of compute threads, at least one."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each."""


@dataclass(frozen=True)
class Report:
    """What was measured, on what."""

    version: str
    dataset: str
    split: str
    rows: int
    metrics: dict[str, float]


def evaluate(spec: EvaluateSpec, *, settings: Settings | None = None) -> Report:
    """Measure a version on a split; the metrics are also logged to the MLflow run that made the version.

    Raises:
        NotFoundError: no such version or dataset.
        DataError: the split has no rows, or the dataset's features are not the model's.
    """
    settings = settings or Settings.from_environment()
    registry = Registry(settings)
    with spec.at("version"):
        version = registry.resolve(spec.version)
    with spec.at("dataset"):
        dataset = _dataset(settings, version, spec.dataset)
    bundle = version.open()
    with spec.at("split"):
        rows = dataset.split(spec.split).rows
    _check_features(bundle, dataset)
    metrics = dataset.task.metrics(_measured(spec, settings, bundle, dataset))
    report = Report(version.reference, dataset.name, spec.split, rows, metrics)
    if version.lineage.run_id:
        for name, value in metrics.items():
            registry.client.log_metric(version.lineage.run_id, f"evaluate/{dataset.name}/{spec.split}/{name}", value)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    say(f"{report.version} on {report.dataset}/{report.split} ({rows:,} rows): {shown}")
    return report


def _dataset(settings: Settings, version: ModelVersion, name: str | None) -> PreparedDataset:
    try:
        return open_dataset(settings, name or version.lineage.dataset_uri)
    except NotFoundError as error:
        if name:
            raise
        raise NotFoundError(
            f"the dataset that {version.reference} was trained on is gone ({error}); name another with `dataset:`."
        ) from error


def _check_features(bundle: Bundle, dataset: PreparedDataset) -> None:
    """The dataset's stored columns must be what the model was trained on: the same fitted features."""
    ours = {entry.path: entry.sha256 for entry in bundle.artifact.files}
    theirs = {e.path.removeprefix("task/"): e.sha256 for e in dataset.artifact.files if e.path.startswith("task/")}
    differing = [path for path, sha256 in theirs.items() if ours.get(path) != sha256]
    if differing:
        raise DataError(
            f"dataset {dataset.name} was prepared with other features than the model's ({', '.join(differing)} "
            "differ). Prepare it with the model's tokenizer or labels."
        )


def _measured(spec: EvaluateSpec, settings: Settings, bundle: Bundle, dataset: PreparedDataset) -> Outcomes:
    """What came of every row of the split."""
    connect(settings)
    import ray
    from ray.util import ActorPool

    measurer = ray.remote(
        num_cpus=spec.cpus_per_worker, num_gpus=spec.gpus_per_worker, max_restarts=2, max_task_retries=2
    )(_Measurer)
    actors = [measurer.remote(bundle, dataset, spec) for _ in range(spec.workers)]
    parts: list[Outcomes] = []
    with progress(f"evaluating {spec.version}", dataset.split(spec.split).rows) as shown:
        done = 0
        measured = ActorPool(actors).map_unordered(
            lambda actor, group: actor.measure.remote(group), dataset.row_groups(spec.split)
        )
        for rows, part in measured:
            done += rows
            shown.update(done)
            parts.append(part)
    return joined(parts)


class _Measurer:
    """Holds the model in an actor; turns row groups into outcomes."""

    def __init__(self, bundle: Bundle, dataset: PreparedDataset, spec: EvaluateSpec) -> None:
        import torch

        directory = bundle.fetch()
        self.task: Task = bundle.load_task(directory)
        self.device = torch.device("cuda" if spec.gpus_per_worker else "cpu")
        if not spec.gpus_per_worker:
            torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
        self.model = self.task.load_model(directory).to(self.device)
        self.dataset, self.batch_size = dataset, spec.batch_size

    def measure(self, group: RowGroup) -> tuple[int, Outcomes]:
        """Number of rows, and what came of each."""
        batches = self.dataset.batches([group], self.batch_size)
        return group.rows, outcomes_of(self.task, self.model, batches, self.device)
