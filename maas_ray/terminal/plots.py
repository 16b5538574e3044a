"""Matplotlib without a screen: PNG files, and SVG for pages with a light or a dark theme.

Matplotlib is imported when something is drawn.
"""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Colours that colour-blind people can tell apart (Okabe and Ito 2008), on light and on dark backgrounds."""

_MAX_NAME = 24
_AXES = "#808080"  # visible on light and on dark backgrounds
_THEME = "<style>text{fill:#1f2328!important}@media(prefers-color-scheme:dark){text{fill:#d1d7e0!important}}</style>"


def png(draw: Draw, title: str, below: str) -> bytes:
    """A PNG file of the axes that `draw` fills, with a title of two lines."""

    def titled(axes: "Axes") -> None:
        draw(axes)
        axes.set_title(f"{plain(title)}\n{plain(below)}", fontsize="medium")

    return _saved(titled, (7, 5.5), format="png", dpi=120)


def svg(draw: Draw, size: tuple[float, float]) -> bytes:
    """An SVG file of the axes that `draw` fills, without background and reproducible.

    Text stays text, in the reader's fonts, and follows the reader's theme.
    """
    import matplotlib as mpl

    lines = ("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor", "grid.color")
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "maas", **dict.fromkeys(lines, _AXES)}
    with mpl.rc_context(settings):
        whole = _saved(draw, size, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    head, tag, rest = whole.decode().partition("<defs>")
    return f"{head}{_THEME}{tag}{rest}".encode()


def _saved(draw: Draw, size: tuple[float, float], **options: Any) -> bytes:
    from matplotlib.figure import Figure  # pyplot would look for a screen

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # glyphs missing in the font are drawn as boxes
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def name(label: str) -> str:
    """A label short enough for an axis."""
    return plain(label if len(label) <= _MAX_NAME else label[: _MAX_NAME - 1] + "…")


def plain(text: str) -> str:
    """A text that Matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
