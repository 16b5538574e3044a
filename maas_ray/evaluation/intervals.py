"""How sure a metric is: bootstrap over rows, and what it says of the difference of two versions.

Rows are drawn with replacement, as many as there are, and the metrics are made of them again by the task's own
function; so a metric needs to know nothing of intervals. These are percentile intervals (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Two versions see the same draws, so their difference is paired; its
p-value is the level of the widest percentile interval that leaves nought out (Davison and Hinkley, Bootstrap Methods
and their Application, 1997, chapters 4 and 5). Knows no cluster, no task and no files.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping

import numpy as np

Metrics = Callable[[Mapping[str, np.ndarray]], dict[str, float]]
"""Metrics from the outcomes of rows."""
Values = dict[str, np.ndarray]
"""Of each metric its values, float64 [resamples]; NaN where the rows drawn do not define it."""

_ROWS = 10_000_000
_FEWEST = 100


def affordable(resamples: int, rows: int) -> int:
    """How many resamples to draw: all that are wanted, but no more than ten million rows in all, or 100 resamples.

    With many rows an interval is narrow, and how well its ends are known matters less.
    """
    return min(resamples, max(_FEWEST, _ROWS // max(1, rows)))


def resampled(
    metrics: Metrics,
    outcomes: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
    watch: Callable[[int], None] = lambda done: None,
    seconds: float = math.inf,
) -> Values:
    """Metrics of rows drawn with replacement. The same seed and number of rows give the same draws.

    Args:
        metrics: makes metrics of outcomes.
        outcomes: one entry a row in each array.
        resamples: how often to draw.
        seed: what to draw with.
        watch: told how many draws are done.
        seconds: after this time no more are made than 100.
    """
    ends = time.monotonic() + seconds
    rows = len(next(iter(outcomes.values())))
    draws = np.random.default_rng(seed)
    found: Values = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may lack a label; a metric that minds has been told of it once
        for number in range(resamples):
            drawn = draws.integers(0, rows, rows)
            for name, value in metrics({key: values[drawn] for key, values in outcomes.items()}).items():
                found.setdefault(name, np.full(resamples, np.nan))[number] = value
            watch(number + 1)
            if number + 1 >= _FEWEST and time.monotonic() > ends:
                return {name: values[: number + 1] for name, values in found.items()}
    return found


def count(values: Values) -> int:
    """How many draws were made."""
    return max(map(len, values.values()), default=0)


def differences(first: Values, second: Values) -> Values:
    """Of each metric that both have, the first's minus the second's for the same drawn rows."""
    draws = min(count(first), count(second))
    return {name: first[name][:draws] - second[name][:draws] for name in first if name in second}


def interval(values: np.ndarray, level: float) -> tuple[float, float] | None:
    """The percentile interval that holds a share `level` of the values; None where more than half are undefined."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= 0.5 else values[:0]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float | None:
    """Two-sided, of the hypothesis that the difference is nought; None where more than half are undefined.

    Never 0: it cannot be smaller than the number of resamples can tell.
    """
    differences = differences[np.isfinite(differences)] if np.isfinite(differences).mean() >= 0.5 else differences[:0]
    if not len(differences):
        return None
    tail = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * tail / (len(differences) + 1))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact McNemar test of whether two versions are right equally often, on the same rows.

    McNemar, Psychometrika 12 (1947); for classifiers, Dietterich, Neural Computation 10 (1998). Only rows where one is
    right and the other is wrong count: without a difference they fall either way like a coin.

    Args:
        first: whether the first is right, bool [n].
        second: whether the second is.
    """
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0
