"""Metrics that several tasks share, from outcomes of all rows. They are scikit-learn's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_loss(outcomes: Mapping[str, np.ndarray]) -> float:
    """The mean loss of a row."""
    return float(np.mean(outcomes["loss"]))


def classification(outcomes: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, float]:
    """Of one label a row: `accuracy`, `precision`, `recall`, `f1`, and `roc_auc`; all in [0, 1].

    With two labels they are those of the second, as scikit-learn has it; with more they are means over labels that each
    weigh the same (macro), and of one label against the rest. `roc_auc` is left out where a label does not occur.

    Args:
        outcomes: `label` int64 [n], -1 where it is unknown; `scores` [n, labels].
        labels: their names.
    """
    from sklearn import metrics

    label, scores = outcomes["label"], np.asarray(outcomes["scores"], np.float64)
    predicted = scores.argmax(-1)
    average = "binary" if len(labels) == 2 else "macro"
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        label, predicted, labels=None if len(labels) == 2 else range(len(labels)), average=average, zero_division=0.0
    )
    found = {
        "accuracy": float(metrics.accuracy_score(label, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
    if len(np.unique(label)) == len(labels):
        scores = scores / scores.sum(-1, keepdims=True)  # in float32 they miss 1 by more than it tolerates
        of_second = {"y_score": scores[:, 1]}
        of_each: dict[str, Any] = {"y_score": scores, "multi_class": "ovr"}
        found["roc_auc"] = float(metrics.roc_auc_score(label, **(of_second if len(labels) == 2 else of_each)))
    return found


def regression(outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of numbers: `mse`, `mae`, and `r2`, left out where all targets are the same.

    Args:
        outcomes: `target` and `prediction`, [n] or [n, several], in the user's unit.
    """
    from sklearn import metrics

    target, prediction = outcomes["target"], outcomes["prediction"]
    found = {
        "mse": float(metrics.mean_squared_error(target, prediction)),
        "mae": float(metrics.mean_absolute_error(target, prediction)),
    }
    if len(target) > 1 and np.ptp(target, axis=0).all():
        found["r2"] = float(metrics.r2_score(target, prediction))
    return found
