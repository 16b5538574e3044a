"""Metrics that tasks share, against values worked out by hand with scikit-learn's definitions."""

import numpy as np
import pytest

from maas_ray.tasks.metrics import classification, regression


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
        }
    )


@pytest.mark.parametrize(
    ("label", "labels"), [([1, 1, 1], ["no", "yes"]), ([0, 0, 0], ["no", "yes"]), ([0, 1, 1], ["a", "b", "c"])]
)
def test_roc_auc_is_absent_if_a_label_does_not_occur(label: list[int], labels: list[str]) -> None:
    scores = np.full((3, len(labels)), 1 / len(labels))

    found = classification({"label": np.array(label), "scores": scores}, labels)

    assert found.keys() == {"accuracy", "precision", "recall", "f1"}


def test_a_label_that_neither_occurs_nor_is_predicted_counts_as_zero() -> None:
    outcomes = {"label": np.array([0, 1]), "scores": np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])}

    assert classification(outcomes, ["a", "b", "c"]) == pytest.approx(
        {"accuracy": 1.0, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    )


def test_regression_leaves_r2_out_if_all_targets_are_equal() -> None:
    found = regression({"target": np.array([1.0, 2.0, 6.0]), "prediction": np.array([1.0, 4.0, 5.0])})

    assert found == pytest.approx({"mse": 5 / 3, "mae": 1.0, "r2": 1 - 5 / 14})
    equal = regression({"target": np.array([2.0, 2.0]), "prediction": np.array([1.0, 3.0])})
    assert equal == pytest.approx({"mse": 1.0, "mae": 1.0})
