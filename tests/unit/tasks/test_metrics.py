"""Metrics that tasks share, against values worked out by hand with scikit-learn's definitions."""

import numpy as np
import pytest
from sklearn import metrics

from maas_ray.tasks.metrics import classification, counted_classification, regression


def test_two_labels_are_measured_on_the_second_alone() -> None:
    second = np.array([0.1, 0.2, 0.6, 0.9, 0.4])
    outcomes = {"label": np.array([0, 0, 0, 1, 1]), "scores": np.stack([1 - second, second], axis=1)}

    # One row of the second label is found, one is missed, one is false. The mean over labels would be 7/12.
    assert classification(outcomes, ["no", "yes"]) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "roc_auc": 5 / 6}
    )


def test_more_labels_are_averaged_with_equal_weight() -> None:
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
    outcomes = {"label": np.array([0, 1, 2, 2]), "scores": scores}

    assert classification(outcomes, ["a", "b", "c"]) == pytest.approx(
        {
            "accuracy": 3 / 4,
            "precision": (1 + 0 + 2 / 3) / 3,
            "recall": (1 + 0 + 1) / 3,
            "f1": (1 + 0 + 4 / 5) / 3,
            "roc_auc": (1 + 1 + 7 / 8) / 3,
            "classes": 3,
        }
    )


@pytest.mark.parametrize("label", [[1, 1, 1], [0, 0, 0]])
def test_roc_auc_is_absent_if_a_single_label_occurs(label: list[int]) -> None:
    for labels in (["no", "yes"], ["a", "b", "c"]):
        scores = np.full((3, len(labels)), 1 / len(labels))
        assert "roc_auc" not in classification({"label": np.array(label), "scores": scores}, labels)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_roc_auc_is_absent_if_a_score_is_not_finite(score: float) -> None:
    """No order of such rows is right: scikit-learn refuses them."""
    outcomes = {"label": np.array([0, 1, 0, 1]), "scores": np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.0, score]])}

    with pytest.raises(ValueError, match=r"NaN|infinity"):
        metrics.roc_auc_score(outcomes["label"], outcomes["scores"][:, 1])
    assert "roc_auc" not in classification(outcomes, ["no", "yes"])


def test_two_labels_of_which_the_second_is_nowhere_have_no_precision_and_recall() -> None:
    outcomes = {"label": np.array([0, 0]), "scores": np.array([[0.9, 0.1], [0.8, 0.2]])}

    assert classification(outcomes, ["no", "yes"]) == {"accuracy": 1.0}
    # If it is predicted, scikit-learn's zero_division=0 applies.
    outcomes["scores"][0] = [0.1, 0.9]
    assert classification(outcomes, ["no", "yes"]) == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_means_are_over_the_labels_that_occur_or_are_predicted() -> None:
    label = np.repeat([0, 1, 2], 5)
    labels = [str(one) for one in range(10)]
    perfect = {"label": label, "scores": np.eye(10)[label]}

    ones = dict.fromkeys(("accuracy", "precision", "recall", "f1", "roc_auc"), 1.0)
    assert classification(perfect, labels) == {**ones, "classes": 3.0}
    perfect["scores"][0] = np.eye(10)[7]
    found = classification(perfect, labels)
    assert found["classes"] == 4
    assert found["f1"] == pytest.approx(metrics.f1_score(label, perfect["scores"].argmax(1), average="macro"))


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_counted_metrics_are_scikit_learns_of_repeated_rows(classes: int) -> None:
    draws = np.random.default_rng(classes)
    rows, labels = 200, [str(one) for one in range(classes)]
    label = draws.integers(0, classes, rows)
    scores = np.round(draws.dirichlet(np.ones(classes), rows) + 0.2 * np.eye(classes)[label], 2)  # with ties
    counts = np.bincount(draws.integers(0, rows, rows), minlength=rows)

    found = counted_classification({"label": label, "scores": scores}, labels)(counts)

    drawn = np.repeat(np.arange(rows), counts)
    label, scores = label[drawn], scores[drawn]
    said = scores.argmax(1)
    average = "binary" if classes == 2 else "macro"
    areas = [metrics.roc_auc_score(label == one, scores[:, one]) for one in np.unique(label)]
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(label, said),
            "precision": metrics.precision_score(label, said, average=average, zero_division=0),
            "recall": metrics.recall_score(label, said, average=average, zero_division=0),
            "f1": metrics.f1_score(label, said, average=average),
            "roc_auc": areas[1] if classes == 2 else np.mean(areas),
        }
    )


def test_rows_without_a_label_do_not_count() -> None:
    outcomes = {"label": np.array([0, 1, -1]), "scores": np.array([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1]])}

    assert classification(outcomes, ["no", "yes"])["accuracy"] == 1.0
    assert classification({name: values[2:] for name, values in outcomes.items()}, ["no", "yes"]) == {}


def test_regression_leaves_r2_out_if_all_targets_are_equal() -> None:
    found = regression({"target": np.array([1.0, 2.0, 6.0]), "prediction": np.array([1.0, 4.0, 5.0])})

    assert found == pytest.approx({"mse": 5 / 3, "mae": 1.0, "r2": 1 - 5 / 14})
    equal = regression({"target": np.array([2.0, 2.0]), "prediction": np.array([1.0, 3.0])})
    assert equal == pytest.approx({"mse": 1.0, "mae": 1.0})
