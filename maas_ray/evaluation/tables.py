"""Tables beside the metrics. What is made depends on what the outcomes are, never on which task they are of.

    label, scores              classes, confusion, calibration
    label, prediction          classes, of sequences of labels
    target, prediction         residuals
    position_loss, …_tokens    loss by position
    reference, hypothesis      the worst transcripts

The numbers are scikit-learn's and jiwer's.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from maas_ray.evaluation.report import Calibration, Confusion, Details, LabelRow, Position, Residuals, Transcript

BINS = 10
_MOST_CONFUSED = 100
_WORST = 20
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Outcomes = Mapping[str, np.ndarray]


def details(outcomes: Outcomes, labels: Sequence[str]) -> Details:
    """The tables of some outcomes.

    Args:
        outcomes: of all rows.
        labels: names of the task's classes; empty: it has none, and scores go by their places.
    """
    names = outcomes.keys()
    found: dict[str, Any] = {}
    if {"label", "scores"} <= names:
        labels = labels or [str(place) for place in range(outcomes["scores"].shape[1])]
        found = _of_labels(outcomes["label"], predicted(outcomes), range(len(labels)), labels)
        found["calibration"] = calibration(outcomes)
    elif {"label", "prediction"} <= names:
        truth, said = (list(chain.from_iterable(outcomes[name])) for name in ("label", "prediction"))
        if len(truth) == len(said):
            known = sorted({*truth, *said})
            found = _of_labels(truth, said, known, known)
    elif {"target", "prediction"} <= names:
        found["residuals"] = residuals(outcomes)
    if {"position_loss", "position_tokens"} <= names:
        found["by_position"] = by_position(outcomes)
    if {"reference", "hypothesis"} <= names:
        found["worst"] = worst(outcomes)
    return Details(**found)


def predicted(outcomes: Outcomes) -> np.ndarray:
    """The likeliest class of each row."""
    likeliest: np.ndarray = outcomes["scores"].argmax(-1)
    return likeliest


def _of_labels(truth: Any, said: Any, ids: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not len(truth):
        return {}
    columns = precision_recall_fscore_support(truth, said, labels=list(ids), zero_division=0.0)
    rows = [
        LabelRow(label=name, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for name, p, r, f, n in zip(names, *columns, strict=True)
    ]
    found: dict[str, Any] = {"by_label": tuple(rows)}
    if len(names) <= _MOST_CONFUSED:
        counts = confusion_matrix(truth, said, labels=list(ids))
        found["confusion"] = Confusion(labels=tuple(names), counts=tuple(map(tuple, counts.tolist())))
    return found


def calibration(outcomes: Outcomes) -> Calibration:
    """Confidence against accuracy."""
    from sklearn.calibration import calibration_curve

    confidence = np.clip(outcomes["scores"].max(-1).astype(np.float64), 0, 1)
    right = (predicted(outcomes) == outcomes["label"]).astype(int)
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS, pos_label=1)
    # As calibration_curve puts them into bins, of which it leaves out the empty ones.
    edges = np.linspace(0, 1, BINS + 1)
    rows = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=BINS)
    rows = rows[rows > 0]
    return Calibration(
        ece=float(np.average(np.abs(accuracy - mean), weights=rows)),
        confidence=tuple(map(float, mean)),
        accuracy=tuple(map(float, accuracy)),
        rows=tuple(map(int, rows)),
    )


def residuals(outcomes: Outcomes) -> Residuals:
    """What predictions are off by."""
    from sklearn.metrics import mean_absolute_error

    target, prediction = outcomes["target"], outcomes["prediction"]
    off = (prediction - target).ravel()
    by_step: tuple[float, ...] = ()
    if target.ndim == 2 and target.shape[1] > 1:
        by_step = tuple(map(float, mean_absolute_error(target, prediction, multioutput="raw_values")))
    quantiles = dict(zip(map(str, _QUANTILES), map(float, np.quantile(off, _QUANTILES)), strict=True))
    return Residuals(bias=float(off.mean()), std=float(off.std()), quantiles=quantiles, mae_by_step=by_step)


def by_position(outcomes: Outcomes) -> tuple[Position, ...]:
    """Mean loss of each stretch of the sequences; those that hold no token are left out."""
    loss, tokens = (outcomes[name].sum(0) for name in ("position_loss", "position_tokens"))
    total = tokens.sum()
    starts = (np.cumsum(tokens) - tokens) / total if total else tokens
    return tuple(
        Position(start=float(start), loss=float(summed / count), tokens=int(count))
        for start, summed, count in zip(starts, loss, tokens, strict=True)
        if count
    )


def worst(outcomes: Outcomes) -> tuple[Transcript, ...]:
    """The rows with the most word errors, most first."""
    rows = [
        Transcript(reference=said, hypothesis=heard, word_errors=word_errors(said, heard))
        for said, heard in zip(outcomes["reference"], outcomes["hypothesis"], strict=True)
    ]
    rows = [row for row in rows if row.word_errors]
    return tuple(sorted(rows, key=lambda row: (-row.word_errors, row.reference))[:_WORST])


def word_errors(reference: str, hypothesis: str) -> int:
    """Words to put in, take out or change; jiwer's count."""
    if not reference.split():
        return len(hypothesis.split())
    import jiwer

    found = jiwer.process_words(reference, hypothesis)
    return int(found.substitutions + found.deletions + found.insertions)
