"""Evaluation without a cluster: intervals, comparisons, tables, plots, and how a report is kept."""

import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from sklearn import metrics as scores

from maas_ray.errors import DataError
from maas_ray.evaluation.intervals import affordable, count, differences, interval, mcnemar, p_value, resampled
from maas_ray.evaluation.measure import _check_numbers
from maas_ray.evaluation.plots import plots
from maas_ray.evaluation.report import Report, Slice, find, keep
from maas_ray.evaluation.run import _check_features
from maas_ray.evaluation.tables import details, word_errors
from maas_ray.registry.versions import Registry
from maas_ray.settings import Settings
from maas_ray.storage import FileEntry
from maas_ray.tasks.metrics import CountedMetrics, classification, counted_classification, regression
from maas_ray.views.evaluations import show_report
from tests.support import bundles
from tests.support.errors import raises

LABELS = ["ant", "bee", "cow"]


def classified(rows: int, seed: int = 0, skill: float = 1.5) -> dict[str, np.ndarray]:
    """Labels, and probabilities that lean towards them."""
    draws = np.random.default_rng(seed)
    label = draws.integers(0, 3, rows)
    logits = draws.normal(size=(rows, 3)) + skill * np.eye(3)[label]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {"loss": -np.log(shares[np.arange(rows), label]), "label": label, "scores": shares.astype(np.float32)}


def guessed(rows: int, steps: int = 1) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    target = draws.normal(size=(rows, steps)).squeeze(-1) if steps == 1 else draws.normal(size=(rows, steps))
    return {"loss": np.ones(rows), "target": target, "prediction": target + draws.normal(0.5, 1, target.shape)}


def mean_of(values: np.ndarray) -> CountedMetrics:
    return lambda counts: {"mean": float(counts @ values / counts.sum())}


# --- intervals -------------------------------------------------------------------------------------


def test_an_interval_is_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    drawn = resampled(mean_of(values), 300, 4000, seed=0)

    found = interval(drawn["mean"], 0.9)
    reference = bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval

    assert found is not None
    assert found == pytest.approx((reference.low, reference.high), abs=0.02)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """About 180 of 200 samples' 90 % intervals hold the mean that the samples were drawn with."""
    draws = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        drawn = resampled(mean_of(draws.normal(size=50)), 50, 300, seed=0)
        bounds = interval(drawn["mean"], 0.9)
        held += bounds is not None and bounds[0] <= 0 <= bounds[1]

    assert 160 <= held <= 195


def test_draws_are_those_of_the_seed_and_rows_stay_together() -> None:
    rows = {"a": np.arange(50.0), "b": np.arange(50.0) * 2}
    one, same, other = (
        resampled(lambda counts: {name: float(counts @ values) for name, values in rows.items()}, 50, 20, seed)
        for seed in (0, 0, 1)
    )

    assert np.array_equal(one["a"], same["a"])
    assert not np.array_equal(one["a"], other["a"])
    assert np.array_equal(one["a"] * 2, one["b"])


def test_a_metric_that_draws_do_not_define_has_no_interval() -> None:
    assert interval(np.array([np.nan, np.nan, 1.0]), 0.95) is None
    assert p_value(np.array([np.nan, np.nan, 1.0])) is None
    assert interval(np.array([np.nan, 1.0, 1.0]), 0.95) == (1.0, 1.0)
    assert resampled(lambda counts: {}, 3, 5, 0) == {}


def test_many_rows_are_drawn_less_often() -> None:
    assert affordable(1000, 10) == affordable(1000, 10_000) == 1000
    assert affordable(1000, 50_000) == 200
    assert affordable(1000, 10_000_000) == 100
    assert affordable(0, 10) == 0
    assert affordable(50, 10_000_000) == 50


def test_slow_metrics_are_drawn_until_the_time_is_up() -> None:
    def slow(counts: np.ndarray) -> dict[str, float]:
        time.sleep(0.01)
        return {"x": float(counts[0])}

    whole = resampled(slow, 5, 30, 0)
    hurried = resampled(slow, 5, 30, 0, seconds=0.05)
    one = resampled(slow, 5, 30, 0, seconds=0)

    assert (count(whole), count(one), count({})) == (30, 1, 0)
    assert 2 <= count(hurried) <= 6
    assert np.array_equal(whole["x"][: count(hurried)], hurried["x"])
    assert not differences(whole, hurried)["x"].any()
    assert differences(whole, {}) == {}


def test_a_perfect_model_is_perfect_in_every_draw_however_rare_its_classes() -> None:
    label = np.concatenate([np.repeat(np.arange(5), 40), np.arange(5, 10)])  # five classes of one row each
    outcomes = {"label": label, "scores": np.eye(10, dtype=np.float32)[label]}
    drawn = resampled(counted_classification(outcomes, [str(one) for one in range(10)]), len(label), 100, 0)

    for name in ("accuracy", "precision", "recall", "f1", "roc_auc"):
        assert interval(drawn[name], 0.95) == (1.0, 1.0), name


def test_draws_of_many_classes_take_no_longer_than_the_scores_are_read() -> None:
    """scikit-learn takes 1 s for a draw of this size on the machine on which this takes 0.02 s."""
    draws = np.random.default_rng(0)
    label, scores = draws.integers(0, 200, 5000), draws.random((5000, 200), np.float32)
    metrics = counted_classification({"label": label, "scores": scores}, [str(one) for one in range(200)])
    started = time.process_time()
    resampled(metrics, 5000, 5, 0)

    assert time.process_time() - started < 1


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_outcomes_that_are_not_finite_are_named_with_their_row(value: float) -> None:
    outcomes = guessed(10, 3) | {"loss": np.ones(10)}
    _check_numbers(outcomes, "sales/1")
    outcomes["target"][[4, 6], 1] = value

    with raises(DataError, "outcome_not_finite", "`target`", "2 of 10 rows", f"target {value} for row 4"):
        _check_numbers(outcomes, "sales/1")


def test_features_may_differ_in_how_fast_they_are_computed_alone() -> None:
    def of(prefix: str, **files: str) -> SimpleNamespace:
        return SimpleNamespace(
            artifact=SimpleNamespace(files=[FileEntry(prefix + path, 1, files[path]) for path in files])
        )

    version, same = SimpleNamespace(reference="m/1"), {"task.json": "a" * 64, "tokenizer.json": "b" * 64}
    old = of("", **same)  # from before the file was written
    dataset = of("task/", **same, **{"acceleration.json": "c" * 64})
    dataset.name = "d"
    _check_features(version, old, dataset)

    dataset.artifact.files.append(FileEntry("task/labels.json", 1, "d" * 64))
    with raises(DataError, "features_differ", "labels.json"):
        _check_features(version, old, dataset)


@pytest.mark.parametrize(("defined", "known"), [(6, True), (5, True), (4, False), (0, False)])
def test_an_interval_needs_at_least_half_of_the_draws(defined: int, known: bool) -> None:
    values = np.concatenate([np.linspace(1.0, 2.0, defined), np.full(10 - defined, np.nan)])

    assert (interval(values, 0.9) is not None) == known
    assert (p_value(values) is not None) == known


# --- two versions ----------------------------------------------------------------------------------


def test_a_p_value_is_that_of_the_normal_test() -> None:
    """For a mean over many rows both agree, since the mean is near to normal."""
    differences = np.random.default_rng(3).normal(0.15, 1, 400)
    drawn = resampled(mean_of(differences), 400, 8000, seed=0)["mean"]
    z = differences.mean() / (differences.std() / np.sqrt(len(differences)))

    assert p_value(drawn) == pytest.approx(2 * norm.sf(abs(z)), abs=0.01)


def test_p_values_of_no_difference_are_spread_evenly() -> None:
    draws = np.random.default_rng(4)
    found = [p_value(resampled(mean_of(draws.normal(size=60)), 60, 300, 0)["mean"]) for _ in range(200)]

    assert 2 <= sum(p is not None and p < 0.05 for p in found) <= 22
    assert p_value(np.zeros(99)) == 1.0
    assert p_value(np.ones(99)) == pytest.approx(0.02)


def test_mcnemar_counts_rows_where_one_alone_is_right() -> None:
    first = np.array([True] * 50 + [True] * 8 + [False] * 1 + [False] * 30)
    second = np.array([True] * 50 + [False] * 8 + [True] * 1 + [False] * 30)

    # Nine tosses, of which one or fewer fall one way: 2 · (1 + 9) / 2⁹
    assert mcnemar(first, second) == pytest.approx(20 / 512)
    assert mcnemar(first, first) == 1.0


# --- tables ----------------------------------------------------------------------------------------


def test_tables_of_labels_are_scikit_learns() -> None:
    outcomes = classified(500)
    found = details(outcomes, LABELS)
    said = outcomes["scores"].argmax(1)

    expected = scores.classification_report(outcomes["label"], said, target_names=LABELS, output_dict=True)
    for row in found.by_label:
        ours = {"precision": row.precision, "recall": row.recall, "f1-score": row.f1, "support": row.support}
        assert ours == pytest.approx(expected[row.label])
    assert found.confusion is not None
    assert np.array_equal(found.confusion.counts, scores.confusion_matrix(outcomes["label"], said))


def test_calibration_is_the_distance_of_confidence_and_accuracy() -> None:
    outcomes = classified(5000)
    found = details(outcomes, LABELS).calibration
    confidence = outcomes["scores"].max(1)
    right = outcomes["scores"].argmax(1) == outcomes["label"]
    bins = np.minimum((confidence * 10).astype(int), 9)
    apart = [
        abs(right[bins == number].mean() - confidence[bins == number].mean()) * (bins == number).sum()
        for number in set(bins.tolist())
    ]

    assert found is not None
    assert found.ece == pytest.approx(sum(apart) / 5000, abs=1e-6)
    assert sum(found.rows) == 5000
    sure = {**outcomes, "scores": np.eye(3, dtype=np.float32)[outcomes["label"]]}
    perfect = details(sure, LABELS).calibration
    assert perfect is not None
    assert (perfect.ece, perfect.accuracy, perfect.rows) == (0.0, (1.0,), (5000,))


def test_a_class_that_neither_occurs_nor_is_predicted_has_no_numbers() -> None:
    label, said = np.array([0, 0, 1]), np.array([0, 2, 2])
    outcomes = {"label": label, "scores": np.eye(4)[said]}

    rows = details(outcomes, ["ant", "bee", "cow", "dog"]).by_label

    assert [(row.precision, row.recall, row.support) for row in rows] == [
        (1.0, 0.5, 2),
        (0.0, 0.0, 1),
        (0.0, 0.0, 0),
        (None, None, 0),
    ]
    mean = np.mean([row.f1 for row in rows if row.f1 is not None])
    assert mean == pytest.approx(classification(outcomes, ["ant", "bee", "cow", "dog"])["f1"])
    assert mean == pytest.approx(scores.f1_score(label, said, average="macro"))


def test_labels_of_sequences_are_counted_label_by_label() -> None:
    label, prediction = np.empty(2, object), np.empty(2, object)
    label[:] = [["O", "name"], ["number"]]
    prediction[:] = [["O", "O"], ["number"]]

    rows = {row.label: row for row in details({"label": label, "prediction": prediction}, []).by_label}

    assert (rows["name"].recall, rows["number"].f1, rows["O"].precision) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("steps", [1, 3])
def test_residuals(steps: int) -> None:
    outcomes = guessed(400, steps)
    off = outcomes["prediction"] - outcomes["target"]
    found = details(outcomes, []).residuals

    assert found is not None
    assert (found.bias, found.std) == pytest.approx((off.mean(), off.std()))
    assert found.quantiles["0.5"] == pytest.approx(np.median(off))
    assert found.mae_by_step == (() if steps == 1 else pytest.approx(np.abs(off).mean(0)))


def test_loss_by_position_is_a_mean_over_tokens() -> None:
    outcomes = {
        "position_loss": np.array([[4.0, 2.0, 0.0], [2.0, 2.0, 0.0]]),
        "position_tokens": np.array([[2, 4, 0], [2, 4, 0]]),
    }
    first, second = details(outcomes, []).by_position

    assert (first.start, first.loss, first.tokens) == (0.0, 1.5, 4)
    assert (second.start, second.loss, second.tokens) == (pytest.approx(1 / 3), 0.5, 8)


def test_the_worst_transcripts_come_first() -> None:
    said = np.array(["one two three", "four", "five six", ""], object)
    heard = np.array(["one two three", "for", "six seven eight", "noise"], object)
    found = details({"reference": said, "hypothesis": heard}, []).worst

    assert [row.word_errors for row in found] == [3, 1, 1]
    assert found[0].reference == "five six"
    assert word_errors("", "a b") == 2


# --- plots, and keeping ----------------------------------------------------------------------------


def report(outcomes: dict[str, np.ndarray], metrics: dict[str, float], **given: object) -> Report:
    fields: dict[str, object] = {
        "version": "digits/1", "dataset": "scans", "fingerprint": "f", "split": "test",
        "rows": len(next(iter(outcomes.values()))), "created": datetime(2026, 11, 1, tzinfo=UTC), "metrics": metrics,
        "intervals": {}, "level": 0.95, "resamples": 0, "seed": 0, "details": details(outcomes, LABELS),
    }  # fmt: skip
    return Report.model_validate(fields | given)


def generated() -> dict[str, np.ndarray]:
    return {"loss": np.ones(4), "position_loss": np.ones((4, 16)), "position_tokens": np.ones((4, 16), np.int64)}


@pytest.mark.parametrize(
    ("outcomes", "names"),
    [
        (classified(100), {"confusion.png", "calibration.png"}),
        (guessed(100), {"residuals.png"}),
        (guessed(100, 3), {"residuals.png", "steps.png"}),
        (generated(), {"positions.png"}),
        ({"loss": np.ones(3)}, set()),
    ],
)
def test_plots_are_those_of_the_outcomes(outcomes: dict[str, np.ndarray], names: set[str]) -> None:
    found = plots(report(outcomes, {"loss": 1.0}), outcomes, ("loss",))

    assert set(found) == names
    for content in found.values():
        assert content.startswith(b"\x89PNG")


def test_slices_are_drawn_also_where_their_names_look_like_formulas() -> None:
    outcomes = guessed(10)
    one = Slice(value="東 $x_$", rows=3, metrics={"mse": 1.0}, intervals={"mse": (0.5, 2.0)})
    made = report(outcomes, regression(outcomes), slices={"$x_$": (one, one.model_copy(update={"metrics": {}}))})

    assert "slices-0.png" in plots(made, outcomes, ("nothing", "mse"))


def test_a_report_is_kept_with_its_version_and_found_again(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = bundles.register(settings, "digits", bundles.image_task(), tmp_path / "bundle")
    outcomes = classified(60)
    made = report(outcomes, classification(outcomes, LABELS), slices={"[red]": ()})
    registry = Registry(settings)

    uri = keep(made, plots(made, outcomes, ("accuracy",)), version, registry, settings)

    (recorded,) = registry.resolve("digits/1").evaluations
    assert (recorded.dataset, recorded.split, recorded.rows, recorded.uri) == ("scans", "test", 60, uri)
    assert recorded.metrics == made.metrics
    again, names = find(uri)
    assert again == made.model_copy(update={"uri": uri})
    assert names == ["calibration.png", "confusion.png", "slices-0.png"]
    show_report(again, names)
    shown = capsys.readouterr().out
    assert "digits/1 on scans/test, 60 rows" in shown
    assert "bee" in shown
    assert "[red]" in shown
