"""Curves over steps, in a terminal (braille, eight dots a character) and as a PNG.

A chart is a title and series of (step, value).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from maas_ray.errors import StorageError

Points = Sequence[tuple[int, float]]

_COLOURS = ("cyan", "yellow")
_PNG_COLOURS = ("tab:blue", "tab:orange")
# The bit of each dot in a braille character: columns of the left and the right dots, from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True)
class Series:
    """One curve. If `marked`, it has marks in place of a line, so that curves differ without colours."""

    label: str
    points: Points
    marked: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves that share an axis. With `from_zero`, the axis starts at 0, so that changes appear in proportion."""

    title: str
    series: tuple[Series, ...]
    rows: int = 6
    from_zero: bool = False


def finite(points: Points) -> list[tuple[int, float]]:
    """The points that can be drawn. MLflow stores infinity as the largest float."""
    return [(step, value) for step, value in points if math.isfinite(value) and abs(value) < 1e300]


def draw(chart: Chart, width: int) -> Text:
    """A chart as lines of at most `width` characters. At least one point must be finite."""
    series = [Series(curve.label, finite(curve.points), curve.marked) for curve in chart.series]
    low, high = _range([value for curve in series for _, value in curve.points], chart.from_zero)
    last = max(step for curve in series for step, _ in curve.points)
    names = [short(low + (high - low) * above / (chart.rows - 1)) for above in reversed(range(chart.rows))]
    margin = max(9, *(len(name) for name in names))
    columns = max(width - margin - 2, 10)

    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for curve, colour in zip(series, _COLOURS, strict=False):
        placed = [
            (step / max(last, 1) * (2 * columns - 1), (high - value) / (high - low) * (4 * chart.rows - 1))
            for step, value in curve.points
        ]
        if curve.marked:
            cells |= {(int(y) // 4, int(x) // 2): ("●", colour) for x, y in placed}
        else:
            cells |= {cell: (chr(0x2800 + bits), colour) for cell, bits in _line(placed).items()}

    text = Text()
    text.append(f"{chart.title:<{margin}}  ", style="bold")
    for curve, colour in zip(series, _COLOURS, strict=False):
        if curve.points:
            text.append("●" if curve.marked else "──", style=colour)
            text.append(f" {curve.label} {short(curve.points[-1][1])}   ")
    for row, name in enumerate(names):
        named = row in (0, chart.rows // 2, chart.rows - 1)
        text.append(f"\n{name if named else '':>{margin}} {'┤' if named else '│'}")
        for column in range(columns):
            mark, colour = cells.get((row, column), (" ", ""))
            text.append(mark, style=colour)
    text.append(f"\n{'':>{margin}} └{'─' * columns}\n{'':>{margin}}  0{f'step {last:,}':>{columns - 1}}")
    return text


def write_png(charts: Sequence[Chart], path: Path, title: str) -> None:
    """Write charts, one below the other, as a PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # pyplot would look for a screen

    figure = Figure(figsize=(9, 2.2 * len(charts) + 1.2), layout="constrained")
    figure.suptitle(title)
    for chart, axes in zip(charts, figure.subplots(len(charts), sharex=True, squeeze=False)[:, 0], strict=True):
        for curve, colour in zip(chart.series, _PNG_COLOURS, strict=False):
            points = finite(curve.points)
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(
                steps, values, label=curve.label, color=colour, marker="o" if curve.marked else None, markersize=4
            )
            if chart.from_zero and values:
                low, high = _range(values, from_zero=True)
                axes.set_ylim(low, high + (high - low) / 20)
        axes.set_title(chart.title, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        if len(chart.series) > 1:
            axes.legend()
    axes.set_xlabel("step")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", code="not_writable") from error


def short(value: float) -> str:
    """A number in a few characters: 12,345 or 0.0021 or 2.04."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _range(values: list[float], from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if low < high else (low, low + (abs(low) or 1.0))


def _line(points: list[tuple[float, float]]) -> dict[tuple[int, int], int]:
    """The braille bits of each character that the lines between points, in dots, run through."""
    bits: dict[tuple[int, int], int] = {}
    for (x0, y0), (x1, y1) in zip(points[:1] + points[:-1], points, strict=True):  # the first line has length 0
        dots = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        for dot in range(dots + 1):
            x, y = round(x0 + (x1 - x0) * dot / dots), round(y0 + (y1 - y0) * dot / dots)
            cell = y // 4, x // 2
            bits[cell] = bits.get(cell, 0) | _DOTS[x % 2][y % 4]
    return bits
