"""What an evaluation found, as it is kept: an artefact of kind `evaluation`, `report.json` with its plots beside it.

    <storage>/evaluations/<model>/<digest>/report.json  *.png  manifest.json

Storage is where any machine can read it, whatever MLflow's own artefact store may be. A tag on the version, see
`registry/versions.py`, says which report is the newest of a dataset and split.
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
    """One class; scikit-learn's precision_recall_fscore_support."""

    label: str
    """Its name."""
    precision: float
    """Share of the rows called so that are so."""
    recall: float
    """Share of the rows that are so that are called so."""
    f1: float
    """Harmonic mean of both."""
    support: int
    """Rows that are so."""


class Confusion(Spec):
    """How often which class was taken for which."""

    labels: tuple[str, ...]
    """Names, in the order of rows and columns."""
    counts: tuple[tuple[int, ...], ...]
    """A row for each true class, a column for each predicted one."""


class Calibration(Spec):
    """Whether a model that says 0.8 is right eight times in ten: of the likeliest class of each row."""

    ece: float
    """Expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017): mean distance of both, weighted by
    rows, over ten bins of equal width."""
    confidence: tuple[float, ...]
    """Mean probability of each bin that has rows."""
    accuracy: tuple[float, ...]
    """Share of it that is right."""
    rows: tuple[int, ...]
    """How many rows it has."""


class Residuals(Spec):
    """Prediction minus target; where a row has several, of all of them."""

    bias: float
    """Mean."""
    std: float
    """Standard deviation."""
    quantiles: dict[str, float]
    """At 0.05, 0.25, 0.5, 0.75, 0.95."""
    mae_by_step: tuple[float, ...] = ()
    """Mean absolute error of each step ahead. Empty: there is one number a row."""


class Position(Spec):
    """A stretch of a sequence."""

    start: float
    """Where it begins, as a share of the sequence."""
    loss: float
    """Mean loss of a token in it, nats."""
    tokens: int
    """How many tokens that is the mean of."""


class Transcript(Spec):
    """A row of speech, and what was heard."""

    reference: str
    """What was said."""
    hypothesis: str
    """What was heard."""
    word_errors: int
    """Words to put in, take out or change (jiwer)."""


class Details(Spec):
    """Tables beside the metrics, by what the task's outcomes are."""

    by_label: tuple[LabelRow, ...] = ()
    """For labels."""
    confusion: Confusion | None = None
    """For labels, of which there are no more than 100."""
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
    """How many they are."""
    metrics: dict[str, float]
    """Of these rows."""
    intervals: dict[str, Interval]
    """Of their metrics."""


class Difference(Spec):
    """A metric of two versions on the same rows."""

    first: float
    """Of the version that was evaluated."""
    second: float
    """Of the other one."""
    difference: float
    """The first minus the second."""
    interval: Interval | None
    """Of the difference."""
    p: float | None
    """Two-sided, paired bootstrap."""


class Comparison(Spec):
    """Two versions on the same rows."""

    against: str
    """The other version."""
    metrics: dict[str, Difference]
    """By name."""
    mcnemar: float | None = None
    """p-value of McNemar's exact test of accuracy, for classification."""


class Report(Spec):
    """What was measured, on what."""

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
    """When."""
    metrics: dict[str, float]
    """By name."""
    intervals: dict[str, Interval]
    """By metric: where it lies, given that the rows are a sample."""
    level: float
    """Level of all intervals."""
    resamples: int
    """Bootstrap draws for each interval of the whole split."""
    seed: int
    """What they were drawn with."""
    details: Details = Details()
    """Tables."""
    slices: dict[str, tuple[Slice, ...]] = {}
    """By column."""
    comparison: Comparison | None = None
    """With another version."""
    uri: str = ""
    """Where the report lies."""


def keep(report: Report, plots: dict[str, bytes], version: ModelVersion, registry: Registry, settings: Settings) -> str:
    """Put a report and its plots into storage, and its numbers on the version; gives where the report lies.

    The metrics are also logged to the MLflow run that made the version, where there is one.
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
    """A report that was kept, and the names of its plots.

    Raises:
        NotFoundError: there is none.
        CorruptError: it is damaged.
    """
    artifact = storage.open_artifact(uri, KIND)
    report = Report.parse(json.loads(artifact.read(REPORT)), source=f"{uri}/{REPORT}")
    plots = [entry.path for entry in artifact.files if entry.path.endswith(".png")]
    return report.model_copy(update={"uri": uri}), plots
