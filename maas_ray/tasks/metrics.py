"""Metrics that several tasks share, from the outcomes of all rows. Their values are scikit-learn's."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def mean_loss(outcomes: Mapping[str, np.ndarray]) -> float:
    """The mean of the rows' losses."""
    return float(np.mean(outcomes["loss"]))


CountedMetrics = Callable[[np.ndarray], dict[str, float]]
"""Metrics of rows, given how often each of them counts: int64 [n]."""


def classification(outcomes: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, float]:
    """Metrics of single-label classification: `accuracy`, `precision`, `recall`, `f1` and `roc_auc`, in [0, 1].

    With two labels, precision, recall and F1 are those of the second label (binary, as in scikit-learn), and absent if
    it neither occurs nor is predicted. With more labels they are unweighted means (macro) over the labels that occur
    or are predicted, which is scikit-learn's default, and `classes` is the number of these labels. `roc_auc` is the
    mean over the labels that occur, each against the rest, and absent if only one occurs.

    Args:
        outcomes: `label` int64 [n], -1 if unknown (the row does not count); `scores` [n, labels].
        labels: names of the labels.
    """
    label = outcomes["label"]
    result = counted_classification(outcomes, labels)(np.ones(len(label), np.int64))
    if len(labels) > 2:
        known = label >= 0
        result["classes"] = float(len(np.union1d(label[known], outcomes["scores"][known].argmax(-1))))
    return result


def counted_classification(outcomes: Mapping[str, np.ndarray], labels: Sequence[str]) -> CountedMetrics:
    """`classification`, without `classes`, of rows that count several times or not at all, without copies of the rows.

    Scores are sorted once, so a call takes O(rows x labels).
    """
    known = outcomes["label"] >= 0
    label, scores = outcomes["label"][known], np.asarray(outcomes["scores"])[known]
    predicted = scores.argmax(-1)
    occurring = np.unique(label).tolist() if np.isfinite(scores).all() else []
    # Both labels of a pair have the same AUC.
    ranks = [_Ranks(scores[:, one], label == one) for one in (occurring[1:] if len(labels) == 2 else occurring)]

    def metrics(counts: np.ndarray) -> dict[str, float]:
        counts = counts[known]
        total = counts.sum()
        if not total:
            return {}
        hits = np.where(predicted == label, counts, 0)
        right, true, said = (
            np.bincount(ids, weights, len(labels))
            for ids, weights in ((label, hits), (label, counts), (predicted, counts))
        )
        result = {"accuracy": float(right.sum() / total)}
        chosen = np.flatnonzero(true + said) if len(labels) > 2 else np.flatnonzero((true + said)[1:]) + 1
        if len(chosen):
            right, true, said = right[chosen], true[chosen], said[chosen]
            result["precision"] = float(np.mean(right / np.maximum(said, 1)))
            result["recall"] = float(np.mean(right / np.maximum(true, 1)))
            result["f1"] = float(np.mean(2 * right / (true + said)))
        areas = [area for area in (one.area(counts) for one in ranks) if area is not None]
        if areas:
            result["roc_auc"] = float(np.mean(areas))
        return result

    return metrics


class _Ranks:
    """The order of rows by the score of one label.

    Args:
        score: [n].
        positive: True for rows of this label, bool [n].
    """

    def __init__(self, score: np.ndarray, positive: np.ndarray) -> None:
        self._order = np.argsort(score).astype(np.int32 if len(score) < 1 << 31 else np.int64)
        self._positive = np.flatnonzero(positive)
        ordered, own = score[self._order], score[self._positive]
        self._below, self._up_to = (np.searchsorted(ordered, own, side) for side in ("left", "right"))

    def area(self, counts: np.ndarray) -> float | None:
        """Area under the ROC curve: the share of pairs, a row of the label and another, that are in the right order.

        A tie is half a pair (Mann and Whitney). None: there are no such pairs.
        """
        summed = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts[self._order], out=summed[1:])
        own = counts[self._positive]
        positives = int(own.sum())
        negatives = int(summed[-1]) - positives
        if not positives or not negatives:
            return None
        beaten = float(own @ (summed[self._below] + summed[self._up_to])) / 2
        # Pairs of two rows of the label are among them, half of them in either order.
        return (beaten - positives**2 / 2) / (positives * negatives)


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
