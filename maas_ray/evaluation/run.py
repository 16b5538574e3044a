"""`evaluate`: a version's metrics on a split of a prepared dataset, with how sure they are.

    outcomes of every row ─▶ metrics, intervals ─▶ tables, slices, comparison ─▶ report and plots in storage ─▶ version
        (the cluster)                  (here: the task's own metrics, bootstrapped over rows)              (a tag)

Metrics are made by the task, all else by what its outcomes are: a new task gets all of it.
"""

from collections import Counter
from datetime import UTC, datetime

import numpy as np

from maas_ray.cluster import connect
from maas_ray.data.dataset import PreparedDataset, open_dataset
from maas_ray.errors import DataError, NotFoundError
from maas_ray.evaluation.intervals import Values, affordable, count, differences, interval, mcnemar, p_value, resampled
from maas_ray.evaluation.measure import Measured, measure
from maas_ray.evaluation.plots import plots
from maas_ray.evaluation.report import Comparison, Difference, Interval, Report, Slice, keep
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.evaluation.tables import details, predicted
from maas_ray.registry.bundle import Bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from maas_ray.tasks.task import Outcomes
from maas_ray.terminal.lines import progress, say

_MOST_SLICES = 20
_SLICE_RESAMPLES = 200
OTHER = "other"
"""The slice of all values but the most frequent."""


def evaluate(spec: EvaluateSpec, *, settings: Settings | None = None) -> Report:
    """Measure a version on a split; report, plots and metrics are kept with the version.

    Raises:
        NotFoundError: no such version or dataset.
        DataError: the split has no rows, the dataset's features are not the model's, or it kept no such column.
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
    with spec.at("slices"):
        dataset.check_kept(spec.slices)
    _check_features(version, bundle, dataset)
    other, others_bundle = None, None
    if spec.against is not None:
        with spec.at("against"):
            other = registry.resolve(spec.against)
            others_bundle = other.open()
            _check_features(other, others_bundle, dataset)
    connect(settings)
    measured = measure(spec, bundle, dataset, version.reference)
    task, resamples = dataset.task, affordable(spec.resamples, rows)
    metrics, drawn = _drawn(spec, task, measured.outcomes, resamples, version.reference)
    report = Report(
        version=version.reference,
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        split=spec.split,
        rows=rows,
        created=datetime.now(tz=UTC),
        metrics=metrics,
        intervals=_intervals(drawn, spec.level),
        level=spec.level,
        resamples=count(drawn),
        seed=spec.seed,
        details=details(measured.outcomes, task.class_names),
        slices={column: _slices(spec, task, measured, column) for column in spec.slices},
    )
    if other and others_bundle:
        theirs = measure(spec, others_bundle, dataset, other.reference)
        others_metrics, others_drawn = _drawn(spec, task, theirs.outcomes, resamples, other.reference)
        apart = differences(drawn, others_drawn)
        comparison = _comparison(spec, other, report, others_metrics, measured, theirs, apart)
        report = report.model_copy(update={"comparison": comparison})
    uri = keep(report, plots(report, measured.outcomes, task.headline), version, registry, settings)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    say(f"{report.version} on {report.dataset}/{report.split} ({rows:,} rows): {shown}")
    return report.model_copy(update={"uri": uri})


def _dataset(settings: Settings, version: ModelVersion, name: str | None) -> PreparedDataset:
    if not name and not version.lineage.dataset_uri:
        raise NotFoundError(f"{version.reference} says of no dataset that it was trained on it; name one.")
    try:
        return open_dataset(settings, name or version.lineage.dataset_uri)
    except NotFoundError as error:
        if name:
            raise
        raise NotFoundError(
            f"the dataset that {version.reference} was trained on is gone ({error}); name another with `dataset:`."
        ) from error


def _check_features(version: ModelVersion, bundle: Bundle, dataset: PreparedDataset) -> None:
    """The dataset's stored columns must be what the model was trained on: the same fitted features."""
    ours = {entry.path: entry.sha256 for entry in bundle.artifact.files}
    theirs = {e.path.removeprefix("task/"): e.sha256 for e in dataset.artifact.files if e.path.startswith("task/")}
    differing = [path for path, sha256 in theirs.items() if ours.get(path) != sha256]
    if differing:
        raise DataError(
            f"dataset {dataset.name} was prepared with other features than those of {version.reference} "
            f"({', '.join(differing)} differ). Prepare it with the model's tokenizer or labels."
        )


def _drawn(
    spec: EvaluateSpec, task: Task, outcomes: Outcomes, resamples: int, label: str
) -> tuple[dict[str, float], Values]:
    """Metrics of rows, and of those drawn from them."""
    outcomes = task.by_row(outcomes)
    with progress(f"bootstrapping {label}", resamples) as shown:
        drawn = resampled(task.metrics, outcomes, resamples, spec.seed, shown.update, spec.resample_seconds)
    return task.metrics(outcomes), drawn


def _intervals(drawn: Values, level: float) -> dict[str, Interval]:
    found = {name: interval(values, level) for name, values in drawn.items()}
    return {name: bounds for name, bounds in found.items() if bounds}


def _slices(spec: EvaluateSpec, task: Task, measured: Measured, column: str) -> tuple[Slice, ...]:
    """The most frequent values, most rows first, and all the others together."""
    values = measured.kept[column]
    counted = sorted(Counter(values.tolist()).items(), key=lambda item: (-item[1], item[0]))
    slices = [(value, values == value) for value, _ in counted[:_MOST_SLICES]]
    if len(counted) > _MOST_SLICES:
        slices.append((OTHER, ~np.any([chosen for _, chosen in slices], axis=0)))
    made = []
    for value, chosen in slices:
        outcomes = task.by_row({name: found[chosen] for name, found in measured.outcomes.items()})
        rows = int(chosen.sum())
        resamples, seconds = (
            affordable(min(spec.resamples, _SLICE_RESAMPLES), rows),
            spec.resample_seconds / len(slices),
        )
        drawn = resampled(task.metrics, outcomes, resamples, spec.seed, seconds=seconds)
        intervals = _intervals(drawn, spec.level)
        made.append(Slice(value=value, rows=rows, metrics=task.metrics(outcomes), intervals=intervals))
    return tuple(made)


def _comparison(
    spec: EvaluateSpec,
    other: ModelVersion,
    report: Report,
    values: dict[str, float],
    measured: Measured,
    theirs: Measured,
    apart: Values,
) -> Comparison:
    """Metrics of both; their draws are of the same rows, so differences of draws are paired."""
    metrics = {
        name: Difference(
            first=report.metrics[name],
            second=values[name],
            difference=report.metrics[name] - values[name],
            interval=interval(apart[name], spec.level) if name in apart else None,
            p=p_value(apart[name]) if name in apart else None,
        )
        for name in report.metrics
        if name in values
    }
    exact = None
    if {"label", "scores"} <= measured.outcomes.keys():
        label = measured.outcomes["label"]
        exact = mcnemar(predicted(measured.outcomes) == label, predicted(theirs.outcomes) == label)
    return Comparison(against=other.reference, metrics=metrics, mcnemar=exact)
