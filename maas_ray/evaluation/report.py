"""The report of an evaluation, stored as an artefact: `report.json` with its plots beside it.

    <storage>/evaluations/<model>/<digest>/report.json  *.png  manifest.json

The report is in storage, where any machine can read it, whatever MLflow's own artefact store is. A tag on the version,
see `registry/versions.py`, names the newest report for each dataset and split.
"""

import json
import tempfile
from datetime import datetime
from pathlib import Path

from maas_ray import storage
from maas_ray.registry.versions import Evaluation as Recorded
from maas_ray.registry.versions import ModelVersion, Registry
from maas_ray.settings import Settings
from maas_ray.spec import Spec

KIND = "evaluation"
REPORT = "report.json"

Interval = tuple[float, float]


class LabelRow(Spec):
    """One class; scikit-learn's precision_recall_fscore_support.

    A class that neither occurs nor is predicted has no numbers, and is not in the means over classes.
    """

    label: str
    """Its name."""
    precision: float | None
    """Share of the rows predicted as this class that belong to it; 0 if there are none."""
    recall: float | None
    """Share of the rows of this class that are predicted as it; 0 if there are none."""
    f1: float | None
    """Harmonic mean of both."""
    support: int
    """Rows of this class."""


class Confusion(Spec):
    """Confusion matrix: how often each class was predicted as each other class."""

    labels: tuple[str, ...]
    """Names, in the order of rows and columns."""
    counts: tuple[tuple[int, ...], ...]
    """A row for each true class, a column for each predicted one."""


class Calibration(Spec):
    """Calibration of the likeliest class of each row: a model that says 0.8 should be right eight times in ten."""

    ece: float
    """Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017): mean distance of both, weighted by
    rows, over ten bins of equal width."""
    confidence: tuple[float, ...]
    """Mean probability in each bin that has rows."""
    accuracy: tuple[float, ...]
    """Share of its rows that are right."""
    rows: tuple[int, ...]
    """Rows of each bin."""


class Residuals(Spec):
    """Prediction minus target, over all values of all rows."""

    bias: float
    """Mean."""
    std: float
    """Standard deviation."""
    quantiles: dict[str, float]
    """At 0.05, 0.25, 0.5, 0.75, 0.95."""
    mae_by_step: tuple[float, ...] = ()
    """Mean absolute error of each step ahead. Empty: a row has a single value."""


class Position(Spec):
    """A stretch of a sequence."""

    start: float
    """Its beginning, as a share of the sequence."""
    loss: float
    """Mean loss of a token in it, nats."""
    tokens: int
    """Tokens in it."""


class Transcript(Spec):
    """A row of speech and its transcript."""

    reference: str
    """The spoken text."""
    hypothesis: str
    """The recognised text."""
    word_errors: int
    """Word insertions, deletions and substitutions (jiwer)."""


class Details(Spec):
    """Tables beside the metrics; the task's outcomes decide which ones there are."""

    by_label: tuple[LabelRow, ...] = ()
    """For labels."""
    confusion: Confusion | None = None
    """For at most 100 labels."""
    calibration: Calibration | None = None
    """For probabilities of labels."""
    residuals: Residuals | None = None
    """For numbers."""
    by_position: tuple[Position, ...] = ()
    """For generation."""
    worst: tuple[Transcript, ...] = ()
    """For speech: the rows with the most word errors."""


class Slice(Spec):
    """The rows that share a value of a column."""

    value: str
    """The value."""
    rows: int
    """Number of these rows."""
    metrics: dict[str, float]
    """Metrics of these rows, by name."""
    intervals: dict[str, Interval]
    """Intervals of these metrics."""
    resamples: int | None = None
    """Bootstrap draws for them. None: unknown, the report is of an older version."""


class Difference(Spec):
    """A metric of two versions on the same rows."""

    first: float
    """Value of the version that was evaluated."""
    second: float
    """Value of the other version."""
    difference: float
    """The first minus the second."""
    interval: Interval | None
    """Interval of the difference."""
    p: float | None
    """Two-sided p-value, paired bootstrap."""


class Comparison(Spec):
    """Two versions on the same rows."""

    against: str
    """The other version."""
    metrics: dict[str, Difference]
    """By name."""
    mcnemar: float | None = None
    """p-value of McNemar's exact test of accuracy, for classification."""


class Report(Spec):
    """Metrics of a version on a split, with intervals, tables, slices and a comparison."""

    version: str
    """`name/number`."""
    dataset: str
    """Name of the dataset."""
    fingerprint: str
    """Fingerprint of the dataset."""
    split: str
    """The split."""
    rows: int
    """Its rows."""
    created: datetime
    """When it was measured."""
    metrics: dict[str, float]
    """By name."""
    intervals: dict[str, Interval]
    """Confidence interval of each metric, given that the rows are a sample."""
    level: float
    """Level of all intervals."""
    resamples: int
    """Bootstrap draws for each interval of the whole split."""
    seed: int
    """Seed of the draws."""
    details: Details = Details()
    """Tables."""
    slices: dict[str, tuple[Slice, ...]] = {}
    """Slices by column."""
    comparison: Comparison | None = None
    """Comparison with another version."""
    uri: str = ""
    """URI of the report."""


def keep(report: Report, plots: dict[str, bytes], version: ModelVersion, registry: Registry, settings: Settings) -> str:
    """Store a report and its plots, and record its metrics with the version; gives the URI of the report.

    The metrics are also logged to the MLflow run that made the version, if there is one.
    """
    home = storage.join(settings.storage, "evaluations", version.name)
    with tempfile.TemporaryDirectory(prefix="maas-evaluation-") as directory:
        for name, content in plots.items():
            (Path(directory) / name).write_bytes(content)
        text = json.dumps(report.document(), indent=2, ensure_ascii=False)
        (Path(directory) / REPORT).write_text(text + "\n", encoding="utf-8")
        artifact = storage.publish(Path(directory), home, KIND, {"version": report.version})
    fields = ("dataset", "fingerprint", "split", "rows", "metrics", "created")
    registry.record(version, Recorded(uri=artifact.uri, **{name: getattr(report, name) for name in fields}))
    if run := version.lineage.run_id:
        for name, value in report.metrics.items():
            registry.client.log_metric(run, f"evaluate/{report.dataset}/{report.split}/{name}", value)
    return artifact.uri


def find(uri: str) -> tuple[Report, list[str]]:
    """A stored report, and the names of its plots.

    Raises:
        NotFoundError: there is no report at the URI.
        CorruptError: it is damaged.
    """
    artifact = storage.open_artifact(uri, KIND)
    report = Report.parse(json.loads(artifact.read(REPORT)), source=f"{uri}/{REPORT}")
    plots = [entry.path for entry in artifact.files if entry.path.endswith(".png")]
    return report.model_copy(update={"uri": uri}), plots
