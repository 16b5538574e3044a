"""Metrics that several tasks share, computed by scikit-learn from the outcomes of all rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_loss(outcomes: Mapping[str, np.ndarray]) -> float:
    """The mean of the rows' losses."""
    return float(np.mean(outcomes["loss"]))


def classification(outcomes: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, float]:
    """Metrics of single-label classification: `accuracy`, `precision`, `recall`, `f1` and `roc_auc`, in [0, 1].

    With two labels, precision, recall and F1 are those of the second label (binary, as in scikit-learn). With more
    labels they are unweighted means over the labels (macro), and `roc_auc` is the mean of each label against the rest.
    `roc_auc` is absent if a label does not occur, because it is undefined then.

    Args:
        outcomes: `label` int64 [n], -1 if unknown; `scores` [n, labels].
        labels: names of the labels.
    """
    from sklearn import metrics

    label, scores = outcomes["label"], np.asarray(outcomes["scores"], np.float64)
    predicted = scores.argmax(-1)
    average = "binary" if len(labels) == 2 else "macro"
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        label, predicted, labels=None if len(labels) == 2 else range(len(labels)), average=average, zero_division=0.0
    )
    result = {
        "accuracy": float(metrics.accuracy_score(label, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
    if len(np.unique(label)) == len(labels):
        scores = scores / scores.sum(-1, keepdims=True)  # float32 sums miss 1 by more than scikit-learn tolerates
        binary = {"y_score": scores[:, 1]}
        one_vs_rest: dict[str, Any] = {"y_score": scores, "multi_class": "ovr"}
        result["roc_auc"] = float(metrics.roc_auc_score(label, **(binary if len(labels) == 2 else one_vs_rest)))
    return result


def regression(outcomes: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of numbers: `mse`, `mae` and `r2`; `r2` is absent if all targets are equal.

    Args:
        outcomes: `target` and `prediction`, [n] or [n, several], in the user's unit.
    """
    from sklearn import metrics

    target, prediction = outcomes["target"], outcomes["prediction"]
    result = {
        "mse": float(metrics.mean_squared_error(target, prediction)),
        "mae": float(metrics.mean_absolute_error(target, prediction)),
    }
    if len(target) > 1 and np.ptp(target, axis=0).all():
        result["r2"] = float(metrics.r2_score(target, prediction))
    return result
