"""Pictures by Matplotlib, without a screen: PNG files, and SVG that stands in a page, light or dark.

Knows nothing of what is drawn. Matplotlib is imported when something is.
"""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Told apart by who sees no red or green (Okabe and Ito, Color Universal Design, 2008), on light and on dark."""

_LONGEST_NAME = 24
_AXES = "#808080"  # lines that are seen on light and on dark
_THEME = "<style>text{fill:#1f2328!important}@media(prefers-color-scheme:dark){text{fill:#d1d7e0!important}}</style>"


def png(draw: Draw, title: str, below: str) -> bytes:
    """What `draw` puts on axes, with two lines above, as a PNG file."""

    def titled(axes: "Axes") -> None:
        draw(axes)
        axes.set_title(f"{plain(title)}\n{plain(below)}", fontsize="medium")

    return _saved(titled, (7, 5.5), format="png", dpi=120)


def svg(draw: Draw, size: tuple[float, float]) -> bytes:
    """What `draw` puts on axes as an SVG file, which has no background and is the same each time.

    Text stays text, in the reader's own fonts, and goes with the theme that the reader prefers.
    """
    import matplotlib as mpl

    lines = ("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor", "grid.color")
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "maas", **dict.fromkeys(lines, _AXES)}
    with mpl.rc_context(settings):
        whole = _saved(draw, size, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    head, tag, rest = whole.decode().partition("<defs>")
    return f"{head}{_THEME}{tag}{rest}".encode()


def _saved(draw: Draw, size: tuple[float, float], **options: Any) -> bytes:
    from matplotlib.figure import Figure  # not pyplot: it would look for a screen

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # what the font lacks is drawn as boxes; in SVG by the reader's font
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def name(label: str) -> str:
    """Short enough for an axis."""
    return plain(label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 1] + "…")


def plain(text: str) -> str:
    """With nothing that Matplotlib would read as a formula."""
    return text.replace("$", r"\$")
