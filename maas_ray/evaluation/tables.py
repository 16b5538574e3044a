"""Tables beside the metrics. They depend on the kind of the outcomes, never on the task.

    label, scores              classes, confusion, calibration
    label, prediction          classes, of sequences of labels
    target, prediction         residuals
    position_loss, …_tokens    loss by position
    reference, hypothesis      the worst transcripts

scikit-learn and jiwer compute the numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from maas_ray.evaluation.report import Calibration, Confusion, Details, LabelRow, Position, Residuals, Transcript

BINS = 10
_MAX_CONFUSED = 100
_WORST = 20
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Outcomes = Mapping[str, np.ndarray]


def details(outcomes: Outcomes, labels: Sequence[str]) -> Details:
    """The tables of some outcomes.

    Args:
        outcomes: outcomes of all rows.
        labels: names of the task's classes. Empty: classes are named by their position in the scores.
    """
    names = outcomes.keys()
    tables: dict[str, Any] = {}
    if {"label", "scores"} <= names:
        labels = labels or [str(position) for position in range(outcomes["scores"].shape[1])]
        tables = _of_labels(outcomes["label"], predicted(outcomes), range(len(labels)), labels)
        tables["calibration"] = calibration(outcomes)
    elif {"label", "prediction"} <= names:
        truth, said = (list(chain.from_iterable(outcomes[name])) for name in ("label", "prediction"))
        if len(truth) == len(said):
            known = sorted({*truth, *said})
            tables = _of_labels(truth, said, known, known)
    elif {"target", "prediction"} <= names:
        tables["residuals"] = residuals(outcomes)
    if {"position_loss", "position_tokens"} <= names:
        tables["by_position"] = by_position(outcomes)
    if {"reference", "hypothesis"} <= names:
        tables["worst"] = worst(outcomes)
    return Details(**tables)


def predicted(outcomes: Outcomes) -> np.ndarray:
    """The likeliest class of each row."""
    likeliest: np.ndarray = outcomes["scores"].argmax(-1)
    return likeliest


def _of_labels(truth: Any, said: Any, ids: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if not len(truth):
        return {}
    columns = precision_recall_fscore_support(truth, said, labels=list(ids), zero_division=0.0)
    seen = {*np.unique(truth).tolist(), *np.unique(said).tolist()}
    rows = [
        LabelRow(label=name, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        if id in seen
        else LabelRow(label=name, precision=None, recall=None, f1=None, support=0)
        for id, name, p, r, f, n in zip(ids, names, *columns, strict=True)
    ]
    tables: dict[str, Any] = {"by_label": tuple(rows)}
    if len(names) <= _MAX_CONFUSED:
        counts = confusion_matrix(truth, said, labels=list(ids))
        tables["confusion"] = Confusion(labels=tuple(names), counts=tuple(map(tuple, counts.tolist())))
    return tables


def calibration(outcomes: Outcomes) -> Calibration:
    """Confidence against accuracy."""
    from sklearn.calibration import calibration_curve

    confidence = np.clip(outcomes["scores"].max(-1).astype(np.float64), 0, 1)
    right = (predicted(outcomes) == outcomes["label"]).astype(int)
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS, pos_label=1)
    # The same bins as those of calibration_curve, which omits empty ones.
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
    """Distribution of the errors of predictions."""
    from sklearn.metrics import mean_absolute_error

    target, prediction = outcomes["target"], outcomes["prediction"]
    off = (prediction - target).ravel()
    by_step: tuple[float, ...] = ()
    if target.ndim == 2 and target.shape[1] > 1:
        by_step = tuple(map(float, mean_absolute_error(target, prediction, multioutput="raw_values")))
    quantiles = dict(zip(map(str, _QUANTILES), map(float, np.quantile(off, _QUANTILES)), strict=True))
    return Residuals(bias=float(off.mean()), std=float(off.std()), quantiles=quantiles, mae_by_step=by_step)


def by_position(outcomes: Outcomes) -> tuple[Position, ...]:
    """Mean loss of each stretch of the sequences; stretches without a token are omitted."""
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
    """Word insertions, deletions and substitutions, as jiwer counts them."""
    if not reference.split():
        return len(hypothesis.split())
    import jiwer

    alignment = jiwer.process_words(reference, hypothesis)
    return int(alignment.substitutions + alignment.deletions + alignment.insertions)
