"""A dataset's report as one HTML file, without scripts and without references to other files.

Jinja escapes all text of rows. A content security policy in the page's head blocks what would still come through.
"""

import base64
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maas_ray.data.names import SPLITS
from maas_ray.data.profile import Names, Numbers
from maas_ray.errors import StorageError
from maas_ray.tasks.traits import Picture, Sound
from maas_ray.terminal import plots
from maas_ray.views.dataset import text as report
from maas_ray.views.dataset.dropped import Row
from maas_ray.views.dataset.escape import escaped, share
from maas_ray.views.dataset.histograms import bars, edges
from maas_ray.views.dataset.summary import DatasetSummary, reason

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT = 2_000
_MEDIA_BYTES = 2_000_000
_SIDE, _SECONDS = 320, 5
_LABELS = 20


@dataclass(frozen=True)
class Section:
    """A section of the page. `cards` are rows of (name, kind, value, alternative text)."""

    title: str
    caption: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    plot: str = ""
    alt: str = ""
    cards: tuple[tuple[tuple[str, str, str, str], ...], ...] = ()
    notes: tuple[str, ...] = ()


def write(summary: DatasetSummary, path: Path) -> None:
    """Write the report of a dataset as an HTML file.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.write_text(page(summary), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", code="not_writable") from error


def page(summary: DatasetSummary) -> str:
    """The report of a dataset as HTML."""
    from jinja2 import Environment, StrictUndefined

    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    title = f"Dataset {summary.meta.name}/{summary.meta.fingerprint[:16]}"
    return template.render(title=title, sections=list(_sections(summary)))


def _sections(summary: DatasetSummary) -> Iterator[Section]:
    counts = summary.meta.counts
    facts = tuple((name, _escaped(fact)) for name, fact in report.facts_of(summary).items() if fact)
    yield Section("Identity", "Facts", ("Fact", "Value"), facts, notes=tuple(map(_escaped, summary.notes)))
    splits = tuple(
        (split, f"{counts.kept.get(split, 0):,}", report.stored_of(summary, split)) for split in SPLITS
    )  # fmt: skip
    yield Section("Splits", "Rows kept, by split", ("Split", "Rows", "Stored as"), splits)
    outcomes = {"kept": summary.stored, **{reason(outcome): rows for outcome, rows in summary.outcomes().items()}}
    rows = tuple((_escaped(name), f"{count:,}", share(count, counts.read)) for name, count in outcomes.items())
    plot = _plotted(list(outcomes), {"rows": [float(count) for count in outcomes.values()]}, "rows")
    caption = f"Outcomes of the {counts.read:,} rows that were read"
    yield Section("Kept and dropped", caption, ("Outcome", "Rows", "Of read"), rows, plot, f"{caption}, as bars")
    if counts.cleaned:
        changed = tuple((_escaped(what), f"{times:,}") for what, times in counts.cleaned.items())
        yield Section("Cleaning", "Changes by cleaning", ("Change", "Times"), changed)
    for role, heading in (("length", "Lengths"), ("target", "Target")):
        for name, by_split in summary.traits(role).items():
            yield _numbers(f"{heading}: {_escaped(name)}", by_split)
    for name, by_split in summary.traits("label").items():
        yield _names(f"Balance: {_escaped(name)}", by_split)
    if columns := report.columns_of(summary):
        cells = tuple(tuple(map(_escaped, column)) for column in columns)
        yield Section("Columns", "Columns in training", ("Column", "Kind", "Missing", "Holds"), cells)
    left = _Budget(_MEDIA_BYTES)
    for split, examples in summary.examples.items():
        cards = tuple(tuple(_value(name, value, left) for name, value in row.items()) for row in examples)
        yield Section(f"Examples: {split}", cards=cards)
    yield from _dropped(summary)


def _numbers(title: str, by_split: dict[str, Numbers | Names]) -> Section:
    numbers = {split: some for split, some in by_split.items() if isinstance(some, Numbers)}
    head = ("Split", "Rows", *(name.capitalize() for name in report.summary_of(Numbers())))
    rows = tuple((split, f"{some.count:,}", *report.summary_of(some).values()) for split, some in numbers.items())
    ends = edges(list(numbers.values()))
    if not ends:
        return Section(title, title, head, rows)
    shown = {split: bars(some, ends) for split, some in numbers.items()}
    parts = {split: [100 * bar.count / max(1, numbers[split].count) for bar in found] for split, found in shown.items()}
    names = [bar.name for bar in next(iter(shown.values()))]
    return Section(title, title, head, rows, _plotted(names, parts, "% of the split"), f"{title}, share by split")


def _names(title: str, by_split: dict[str, Numbers | Names]) -> Section:
    counted, names = report.ranked(by_split)
    shown = names[:_LABELS]
    rows = tuple((_escaped(name), *(f"{some.counts[name]:,}" for some in counted.values())) for name in shown)
    parts = {
        split: [100 * some.counts[name] / max(1, some.counts.total()) for name in shown]
        for split, some in counted.items()
    }
    notes = (f"and {len(names) - len(shown):,} more",) if len(names) > len(shown) else ()
    plot = _plotted(shown, parts, "% of the split") if shown else ""
    return Section(title, title, ("Name", *counted), rows, plot, f"{title}, share by split", notes=notes)


def _dropped(summary: DatasetSummary) -> Iterator[Section]:
    left = summary.dropped
    for outcome, pairs in left.pairs.items():
        rows = tuple((_row(pair.out), _row(pair.kept)) for pair in pairs)
        head = ("Dropped", "Kept instead")
        yield Section(f"Dropped: {reason(outcome)}", "Examples, with the rows that are kept", head, rows)
    if left.groups:
        rows = tuple((_row(group.kept), f"{group.others:,}") for group in left.groups)
        yield Section("Most frequent rows", "Rows with the most duplicates", ("Kept", "Duplicates"), rows)
    for outcome, some in left.others.items():
        yield Section(
            f"Dropped: {_escaped(reason(outcome))}", "Examples", ("Row",), tuple((_row(row),) for row in some)
        )
    if left.broken:
        errors = tuple((f"{one.rows:,}", _escaped(one.error), _row(one.example)) for one in left.broken)
        yield Section("Quarantine", "The most frequent errors", ("Rows", "Error", "Example"), errors)
    if notes := report.notes_of(summary, left):
        yield Section("Not shown", notes=tuple(notes))


# --- values ----------------------------------------------------------------------------------------


class _Budget:
    """The bytes of media that still fit into the page."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, content: bytes) -> bool:
        fits = len(content) <= self.left
        self.left -= len(content) if fits else 0
        return fits


def _value(name: str, value: Any, budget: _Budget) -> tuple[str, str, str, str]:
    words = report.in_words(value)
    if isinstance(value, Picture) and budget.take(content := _png(value)):
        return _escaped(name), "image", _uri("image/png", content), words
    if isinstance(value, Sound) and budget.take(content := _wav(value)):
        return _escaped(name), "sound", _uri("audio/wav", content), words
    return _escaped(name), "text", escaped(value, _TEXT, lines=True) if isinstance(value, str) else words, ""


def _png(picture: Picture) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _wav(sound: Sound) -> bytes:
    """The first seconds, at full volume."""
    samples = sound.samples[: _SECONDS * sound.rate].astype(np.float64)
    loudest = float(np.abs(samples).max(initial=0.0)) or 1.0
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes((samples / loudest * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _row(row: Row | None) -> str:
    return report.NOT_FOUND if row is None else f"{_escaped(row.place)}\n{escaped(row.excerpt, _TEXT, lines=True)}"


def _escaped(text: str) -> str:
    return escaped(text, _TEXT)


def _plotted(names: list[str], values: dict[str, list[float]], unit: str) -> str:
    """Grouped bars as the URI of an SVG."""

    def draw(axes: "Axes") -> None:
        height = 0.8 / len(values)
        for series, (called, some) in enumerate(values.items()):
            at = [row + series * height for row in range(len(names))]
            axes.barh(at, some, height=height, label=called, color=plots.COLOURS[series])
        middle = 0.4 - height / 2
        axes.set_yticks([row + middle for row in range(len(names))], [plots.name(_escaped(name)) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.spines[["top", "right"]].set_visible(False)
        if len(values) > 1:
            axes.legend(frameon=False)

    return _uri("image/svg+xml", plots.svg(draw, (8, 1 + 0.3 * len(names))))
