"""`evaluate`: a version's metrics on a split of a prepared dataset, with confidence intervals.

    outcomes of every row ─▶ metrics, intervals ─▶ tables, slices, comparison ─▶ report and plots in storage ─▶ version
        (the cluster)                  (here: the task's own metrics, bootstrapped over rows)              (a tag)

The task computes metrics; all else depends only on the kind of its outcomes, so a new task gets it without code.
"""

from collections import Counter
from datetime import UTC, datetime

import numpy as np

from maas_ray.cluster import connect
from maas_ray.data.dataset import PreparedDataset, open_dataset
from maas_ray.errors import DataError, NotFoundError
from maas_ray.evaluation.intervals import (
    MIN_DRAWS,
    Values,
    affordable,
    count,
    differences,
    interval,
    mcnemar,
    p_value,
    resampled,
)
from maas_ray.evaluation.measure import Measured, measure
from maas_ray.evaluation.plots import plots
from maas_ray.evaluation.report import Comparison, Difference, Interval, Report, Slice, keep
from maas_ray.evaluation.spec import EvaluateSpec
from maas_ray.evaluation.tables import details, predicted
from maas_ray.registry.bundle import Bundle
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.tasks import Task
from maas_ray.tasks.task import ACCELERATION_FILE, Outcomes
from maas_ray.terminal.lines import progress, say

_MAX_SLICES = 20
_SLICE_RESAMPLES = 200
OTHER = "other"
"""The slice of all other values than the most frequent ones."""


def evaluate(spec: EvaluateSpec, *, settings: Settings | None = None) -> Report:
    """Measure a version on a split; store report, plots and metrics with the version.

    Raises:
        NotFoundError: the version or the dataset does not exist.
        DataError: the split has no rows, the dataset's features are not the model's, or it did not keep a column.
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
        raise NotFoundError(
            f"{version.reference} does not record the dataset it was trained on; name one with `dataset`.",
            code="dataset_unknown",
        )
    try:
        return open_dataset(settings, name or version.lineage.dataset_uri)
    except NotFoundError as error:
        if name:
            raise
        raise NotFoundError(
            f"the dataset that {version.reference} was trained on does not exist any more ({error}); name another with "
            "`dataset`.",
            code="dataset_gone",
        ) from error


def _check_features(version: ModelVersion, bundle: Bundle, dataset: PreparedDataset) -> None:
    """Check that the dataset was prepared with the same fitted features as the model's training data.

    Raises:
        DataError: it was not; names the files that differ.
    """
    ours = {entry.path: entry.sha256 for entry in bundle.artifact.files}
    theirs = {e.path.removeprefix("task/"): e.sha256 for e in dataset.artifact.files if e.path.startswith("task/")}
    differing = [path for path, sha256 in theirs.items() if path != ACCELERATION_FILE and ours.get(path) != sha256]
    if differing:
        raise DataError(
            f"dataset {dataset.name} was prepared with other features than those of {version.reference} "
            f"({', '.join(differing)} differ). Prepare it with the model's tokenizer or labels.",
            code="features_differ",
        )


def _drawn(
    spec: EvaluateSpec, task: Task, outcomes: Outcomes, resamples: int, label: str
) -> tuple[dict[str, float], Values]:
    """Metrics of all rows, and of rows drawn from them."""
    rows = len(next(iter(outcomes.values())))
    with progress(f"bootstrapping {label}", resamples) as shown:
        drawn = resampled(
            task.counted_metrics(outcomes), rows, resamples, spec.seed, shown.update, spec.resample_seconds
        )
    if count(drawn) < resamples:
        few = "" if count(drawn) >= MIN_DRAWS else f"; intervals need {MIN_DRAWS}"
        say(
            f"{label}: {count(drawn):,} of {resamples:,} bootstrap draws were made in {spec.resample_seconds:g} s"
            f"{few}. Raise `resample_seconds` for more."
        )
    return task.metrics(outcomes), drawn


def _intervals(drawn: Values, level: float) -> dict[str, Interval]:
    if count(drawn) < MIN_DRAWS:
        return {}
    intervals = {name: interval(values, level) for name, values in drawn.items()}
    return {name: bounds for name, bounds in intervals.items() if bounds}


def _slices(spec: EvaluateSpec, task: Task, measured: Measured, column: str) -> tuple[Slice, ...]:
    """Slices of the most frequent values, most rows first, and one slice of all other values."""
    values = measured.kept[column]
    counted = sorted(Counter(values.tolist()).items(), key=lambda item: (-item[1], item[0]))
    slices = [(value, values == value) for value, _ in counted[:_MAX_SLICES]]
    if len(counted) > _MAX_SLICES:
        slices.append((OTHER, ~np.any([chosen for _, chosen in slices], axis=0)))
    measured_slices = []
    for value, chosen in slices:
        outcomes = {name: values[chosen] for name, values in measured.outcomes.items()}
        rows = int(chosen.sum())
        resamples, seconds = (
            affordable(min(spec.resamples, _SLICE_RESAMPLES), rows),
            spec.resample_seconds / len(slices),
        )
        drawn = resampled(task.counted_metrics(outcomes), rows, resamples, spec.seed, seconds=seconds)
        measured_slices.append(
            Slice(
                value=value,
                rows=rows,
                metrics=task.metrics(outcomes),
                intervals=_intervals(drawn, spec.level),
                resamples=count(drawn),
            )
        )
    return tuple(measured_slices)


def _comparison(
    spec: EvaluateSpec,
    other: ModelVersion,
    report: Report,
    values: dict[str, float],
    measured: Measured,
    theirs: Measured,
    apart: Values,
) -> Comparison:
    """The comparison of both versions; their draws are of the same rows, so differences of draws are paired."""
    apart = apart if count(apart) >= MIN_DRAWS else {}
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
