"""Plots of a report, as PNG."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.evaluation.report import Report
from maas_ray.terminal import plots as figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 5_000
_NAMED = 30  # more labels than this cannot be read on an axis


def plots(report: Report, outcomes: Mapping[str, np.ndarray], headline: tuple[str, ...]) -> dict[str, bytes]:
    """PNG files by name.

    Args:
        report: the report to plot.
        outcomes: the outcomes that it was computed from.
        headline: names of metrics; slices show the first one that the report has.
    """
    below = f"{report.version} on {report.dataset}/{report.split}"
    return {
        f"{name}.png": figures.png(draw, title, below) for name, title, draw in _drawings(report, outcomes, headline)
    }


def _drawings(
    report: Report, outcomes: Mapping[str, np.ndarray], headline: tuple[str, ...]
) -> Iterator[tuple[str, str, Callable[["Axes"], None]]]:
    details = report.details
    if details.confusion and any(map(any, details.confusion.counts)):
        yield "confusion", "Confusion matrix", lambda axes: _confusion(axes, report)
    if details.calibration:
        title = f"Calibration, ECE {details.calibration.ece:.3f}"
        yield "calibration", title, lambda axes: _calibration(axes, report)
    if details.residuals:
        yield "residuals", "Residuals", lambda axes: _residuals(axes, outcomes)
        if steps := details.residuals.mae_by_step:
            yield "steps", "Mean absolute error by step ahead", lambda axes: _line(axes, steps, "step ahead")
    if positions := details.by_position:
        yield "positions", "Loss by position", lambda axes: _positions(axes, positions)
    metric = next((name for name in headline if name in report.metrics), None)
    for number, column in enumerate(report.slices):
        if metric:
            draw = _slices_of(report, column, metric)
            yield f"slices-{number}", f"{metric} by {column}", draw


def _confusion(axes: "Axes", report: Report) -> None:
    confusion = report.details.confusion
    if confusion is None:
        return
    counts = np.array(confusion.counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(counts) <= _NAMED:
        places = range(len(counts))
        axes.set_xticks(places, [figures.name(label) for label in confusion.labels], rotation=90)
        axes.set_yticks(places, [figures.name(label) for label in confusion.labels])
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)


def _calibration(axes: "Axes", report: Report) -> None:
    calibration = report.details.calibration
    if calibration is None:
        return
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.plot(calibration.confidence, calibration.accuracy, marker="o")
    for x, y, rows in zip(calibration.confidence, calibration.accuracy, calibration.rows, strict=True):
        axes.annotate(f"{rows:,}", (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set_xlabel("probability of the likeliest class")
    axes.set_ylabel("share that is right (number: rows)")
    axes.grid(alpha=0.3)


def _residuals(axes: "Axes", outcomes: Mapping[str, np.ndarray]) -> None:
    target, prediction = (outcomes[name].ravel() for name in ("target", "prediction"))
    if len(target) > _POINTS:
        chosen = np.random.default_rng(0).choice(len(target), _POINTS, replace=False)
        target, prediction = target[chosen], prediction[chosen]
    axes.axhline(0, color="grey", linewidth=1)
    axes.scatter(prediction, prediction - target, s=8, alpha=0.5)
    axes.set_xlabel("prediction")
    axes.set_ylabel("prediction - target")
    axes.grid(alpha=0.3)


def _positions(axes: "Axes", positions: Any) -> None:
    axes.step(
        [one.start for one in positions] + [1.0], [one.loss for one in positions] + [positions[-1].loss], where="post"
    )
    axes.set_xlabel("share of the sequence")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)


def _line(axes: "Axes", values: tuple[float, ...], label: str) -> None:
    axes.plot(range(1, len(values) + 1), values, marker="o")
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def _slices_of(report: Report, column: str, metric: str) -> Callable[["Axes"], None]:
    def draw(axes: "Axes") -> None:
        shown = [one for one in report.slices[column] if metric in one.metrics]
        places = range(len(shown))
        values = [one.metrics[metric] for one in shown]
        axes.scatter(values, places, zorder=3)
        for place, one in zip(places, shown, strict=True):
            if metric in one.intervals:
                axes.plot(one.intervals[metric], [place, place], color="tab:blue")
        axes.axvline(report.metrics[metric], color="grey", linewidth=1)
        axes.set_yticks(places, [f"{figures.name(one.value) or '(empty)'} ({one.rows:,})" for one in shown])
        axes.invert_yaxis()
        axes.set_xlabel(metric)
        axes.grid(alpha=0.3)

    return draw
