"""Confidence intervals by the bootstrap, and tests of the difference of two versions.

Rows are drawn with replacement, as many as there are. A draw is how often each row counts, and the task's own function
computes its metrics; so a metric knows nothing of intervals. They are percentile intervals (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Two versions see the same draws, so their difference is paired. Its
p-value is the level of the widest percentile interval that excludes zero (Davison and Hinkley, Bootstrap Methods and
their Application, 1997, chapters 4 and 5). The module knows no cluster, no task and no files.
"""

import math
import time
import warnings
from collections.abc import Callable

import numpy as np

from maas_ray.tasks.metrics import CountedMetrics

Values = dict[str, np.ndarray]
"""Values of each metric, float64 [resamples]; NaN if the rows drawn do not define it."""

MIN_DRAWS = 20
"""Draws without which there are no intervals: fewer say little about the tails."""
_ROWS = 10_000_000
_MIN_RESAMPLES = 100


def affordable(resamples: int, rows: int) -> int:
    """Resamples to draw: as many as requested, but at most ten million rows in all, or 100 resamples if that is more.

    With many rows an interval is narrow, and the precision of its ends matters less.
    """
    return min(resamples, max(_MIN_RESAMPLES, _ROWS // max(1, rows)))


def resampled(
    metrics: CountedMetrics,
    rows: int,
    resamples: int,
    seed: int,
    watch: Callable[[int], None] = lambda done: None,
    seconds: float = math.inf,
) -> Values:
    """Metrics of rows drawn with replacement. The same seed and number of rows give the same draws.

    Args:
        metrics: the metrics of a draw.
        rows: number of rows.
        resamples: number of draws.
        seed: seeds the draws.
        watch: called with the number of draws so far.
        seconds: drawing stops after this time; one draw is always made.
    """
    ends = time.monotonic() + seconds
    draws = np.random.default_rng(seed)
    drawn: Values = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may lack a label, of which a metric may warn
        for number in range(resamples):
            counts = np.bincount(draws.integers(0, rows, rows), minlength=rows)
            for name, value in metrics(counts).items():
                drawn.setdefault(name, np.full(resamples, np.nan))[number] = value
            watch(number + 1)
            if time.monotonic() > ends:
                return {name: values[: number + 1] for name, values in drawn.items()}
    return drawn


def count(values: Values) -> int:
    """Number of draws."""
    return max(map(len, values.values()), default=0)


def differences(first: Values, second: Values) -> Values:
    """The first's values minus the second's for the same draws, for each metric that both have."""
    draws = min(count(first), count(second))
    return {name: first[name][:draws] - second[name][:draws] for name in first if name in second}


def interval(values: np.ndarray, level: float) -> tuple[float, float] | None:
    """The percentile interval that holds a share `level` of the values. None: more than half are undefined."""
    values = values[np.isfinite(values)] if np.isfinite(values).mean() >= 0.5 else values[:0]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float | None:
    """Two-sided p-value of the hypothesis that the difference is zero. None: more than half are undefined.

    It is never 0, because the number of resamples limits how small it can be.
    """
    differences = differences[np.isfinite(differences)] if np.isfinite(differences).mean() >= 0.5 else differences[:0]
    if not len(differences):
        return None
    tail = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * tail / (len(differences) + 1))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of McNemar's exact test that two versions are right equally often on the same rows.

    McNemar, Psychometrika 12 (1947); for classifiers, Dietterich, Neural Computation 10 (1998). It counts
    only rows on which one version is right and the other wrong: without a difference, either is equally likely.

    Args:
        first: True if the first version is right, bool [n].
        second: the same for the second version.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
