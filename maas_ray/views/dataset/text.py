"""Datasets in a terminal, and as JSON."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from maas_ray.data.dataset import open_dataset
from maas_ray.data.names import SPLITS
from maas_ray.data.profile import Names, Numbers, document_of
from maas_ray.settings import Settings
from maas_ray.tasks.traits import Curve, Picture, Sound
from maas_ray.terminal.lines import new_table, print_json, say, show_table
from maas_ray.views.dataset.dropped import Dropped, Pair, Row
from maas_ray.views.dataset.escape import escaped, number, share, size
from maas_ray.views.dataset.histograms import bars, edges
from maas_ray.views.dataset.listing import datasets
from maas_ray.views.dataset.origin import shown
from maas_ray.views.dataset.summary import DatasetSummary, reason, summarise

QUANTILES = (0.05, 0.5, 0.95)
_EXCERPT, _CELL = 160, 240
_LABELS, _COLUMNS = 20, 40
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"


def show_datasets(settings: Settings, *, as_json: bool = False) -> None:
    """Print the list of datasets."""
    listed = datasets(settings)
    if as_json:
        print_json([asdict(one) for one in listed])
        return
    if not listed:
        say("datasets   none; `maas prepare SPEC` creates one")
        return
    table = new_table("DATASET", "FINGERPRINT", *(split.upper() for split in SPLITS), "SIZE", "PREPARED", "PARENT")
    last = ""
    for one in listed:
        when = f"{one.prepared.astimezone():%Y-%m-%d %H:%M}" if one.prepared else ""
        rows = [f"{one.rows.get(split, 0):,}" if one.rows else "" for split in SPLITS]
        name = one.name if one.name != last else ""
        mark = f"{one.fingerprint}{'' if one.current else ' (older)'}"
        table.add_row(Text(name), mark, *rows, "damaged" if one.problem else size(one.size), when, Text(one.parent))
        last = one.name
    show_table(table)
    for one in listed:
        if one.problem:
            say(f"{one.name}/{one.fingerprint} cannot be read: {one.problem}")


def open_summary(settings: Settings, name: str, examples: int) -> DatasetSummary:
    """The summary of a dataset.

    Args:
        settings: the settings with the storage's URI.
        name: the dataset's name, `name/fingerprint`, or a URI.
        examples: the number of rows to show of each split and of each reason for dropping.

    Raises:
        NotFoundError: the dataset does not exist; lists those that do.
    """
    return summarise(open_dataset(settings, name), examples)


def show(summary: DatasetSummary) -> None:
    """Print a summary as text."""
    _show_facts(summary)
    _show_counts(summary)
    for name, by_split in summary.traits("length").items():
        _show_numbers(name, by_split)
    for name, by_split in summary.traits("target").items():
        _show_numbers(name, by_split)
    for name, by_split in summary.traits("label").items():
        _show_names(name, by_split)
    _show_columns(summary)
    _show_examples(summary)
    _show_dropped(summary, summary.dropped)
    for note in summary.notes:
        say("")
        say(escaped(note, 1000))


def sources_of(summary: DatasetSummary) -> list[str]:
    """The sources of rows, one line each."""
    lines = []
    for source in summary.meta.spec.get("sources", ()):
        rest = shown(source)
        named = [str(rest.pop(key)) for key in ("format", "path", "uri") if key in rest]
        more = [json.dumps(rest, ensure_ascii=False, default=str)] if rest else []
        lines.append(" ".join(named + more))
    return lines


def facts_of(summary: DatasetSummary) -> dict[str, str]:
    """The identity of a dataset and its files, by label."""
    return {
        "task": summary.task,
        "fingerprint": summary.meta.fingerprint,
        "parent": summary.parent,
        "prepared": f"{summary.prepared.astimezone():%Y-%m-%d %H:%M:%S}" if summary.prepared else "",
        "size": f"{size(summary.size)} in {summary.files:,} files",
        "at": summary.uri,
        "sources": "; ".join(sources_of(summary)),
        "kept columns": ", ".join(summary.meta.kept),
    }


def _show_facts(summary: DatasetSummary) -> None:
    say(f"{summary.meta.name}/{summary.meta.fingerprint[:16]}")
    for label, fact in facts_of(summary).items():
        if fact:
            say(f"  {label:<13} {escaped(fact, 1000)}")


def _show_counts(summary: DatasetSummary) -> None:
    counts = summary.meta.counts
    table = new_table("SPLIT", "ROWS", "OF KEPT", "STORED")
    for split in SPLITS:
        table.add_row(split, f"{counts.kept.get(split, 0):,}", share(counts.kept.get(split, 0), summary.stored),
                      stored_of(summary, split))  # fmt: skip
    _show(table)
    table = new_table("OUTCOME", "ROWS", "OF READ")
    table.add_row("read", f"{counts.read:,}", "")
    table.add_row("kept", f"{summary.stored:,}", share(summary.stored, counts.read))
    for outcome, rows in summary.outcomes().items():
        table.add_row(Text(escaped(reason(outcome), _CELL)), f"{rows:,}", share(rows, counts.read))
    _show(table)
    if counts.cleaned:
        table = new_table("CHANGED BY CLEANING", "TIMES")
        for what, times in sorted(counts.cleaned.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(Text(escaped(what, _CELL)), f"{times:,}")
        _show(table)


def stored_of(summary: DatasetSummary, split: str) -> str:
    """The stored form of a split's rows, if it differs from rows."""
    counts, stored = summary.meta.counts, summary.meta.splits[split].rows
    if split in counts.packed_units:
        left = counts.packed_dropped.get(split, 0)
        return f"{stored:,} sequences of {counts.packed_units[split]:,} elements, {left:,} left over"
    return f"{stored:,}" if stored != counts.kept.get(split, 0) else ""


# --- statistics ------------------------------------------------------------------------------


def _show_numbers(name: str, by_split: dict[str, Numbers | Names]) -> None:
    numbers = {split: some for split, some in by_split.items() if isinstance(some, Numbers)}
    table = new_table(Text(escaped(name, 60)).plain.upper(), "ROWS", *summary_of(Numbers()))
    for split, some in numbers.items():
        table.add_row(split, f"{some.count:,}", *summary_of(some).values())
    _show(table)
    split, some = next(iter(numbers.items()), ("", Numbers()))
    found = bars(some, edges([some]))
    most = max((bar.count for bar in found), default=0)
    table = new_table(f"{split}", "", "", "OF IT")
    for bar in found:
        table.add_row(bar.name, _bar(bar.count, most), f"{bar.count:,}", share(bar.count, some.count))
    if found:
        _show(table)


def summary_of(some: Numbers) -> dict[str, str]:
    """Mean, extremes and quantiles, by heading."""
    values = {"MEAN": some.mean, "LEAST": some.least}
    values |= {f"{100 * q:g} %": some.quantile(q) for q in QUANTILES} | {"MOST": some.most}
    return {heading: number(value) if some.count else "" for heading, value in values.items()}


def _bar(count: int, most: int) -> str:
    """A bar in eighths of a character. Every count above 0 is visible."""
    eighths = max(round(count / most * _BAR * 8), 1) if count else 0
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def ranked(by_split: dict[str, Numbers | Names]) -> tuple[dict[str, Names], list[str]]:
    """The counts by split, and all names, the most frequent of the first split first."""
    counted = {split: some for split, some in by_split.items() if isinstance(some, Names)}
    first = next(iter(counted.values()), Names())
    every = {name for some in counted.values() for name in some.counts}
    return counted, sorted(every, key=lambda name: (-first.counts[name], name))


def _show_names(name: str, by_split: dict[str, Numbers | Names]) -> None:
    counted, names = ranked(by_split)
    table = new_table(escaped(name, 60).upper(), *(text for split in counted for text in (split.upper(), "")))
    for label in names[:_LABELS]:
        cells = [
            text
            for some in counted.values()
            for text in (f"{some.counts[label]:,}", share(some.counts[label], some.counts.total()))
        ]
        table.add_row(Text(escaped(label, 60) or "(empty)"), *cells)
    _show(table)
    if rest := names[_LABELS:]:
        first = next(iter(counted.values()))
        rows = sum(first.counts[label] for label in rest)
        say(f"and {len(rest):,} more, the rarest {escaped(rest[-1], 60)!r}; {rows:,} in {next(iter(counted))}")


def columns_of(summary: DatasetSummary) -> list[tuple[str, str, str, str]]:
    """The columns of the training split: name, kind, share of missing values, summary of the values."""
    columns = []
    for name, by_split in summary.traits("column").items():
        some = by_split.get("train")
        if isinstance(some, Numbers):
            held = summary_of(some)
            text = f"{held['LEAST']} to {held['MOST']}, mean {held['MEAN']}, median {held['50 %']}"
            columns.append((name, "number", share(some.missing, some.count + some.missing), text if some.count else ""))
        elif isinstance(some, Names):
            total = some.counts.total()
            common = [f"{value} {share(count, total)}" for value, count in ordered(some)[:5]]
            text = f"{len(some.counts):,}: {', '.join(common)}"
            columns.append((name, "category", share(some.missing, total + some.missing), text))
    return columns


def ordered(some: Names) -> list[tuple[str, int]]:
    """Names with their counts, the most frequent first."""
    return sorted(some.counts.items(), key=lambda item: (-item[1], item[0]))


def _show_columns(summary: DatasetSummary) -> None:
    columns = columns_of(summary)
    if not columns:
        return
    table = new_table("COLUMN (TRAIN)", "KIND", "MISSING", "HOLDS")
    for name, kind, missing, held in columns[:_COLUMNS]:
        table.add_row(Text(escaped(name, 60)), kind, missing, Text(escaped(held, _CELL)))
    _show(table)
    if len(columns) > _COLUMNS:
        say(f"and {len(columns) - _COLUMNS:,} more; --json has all")


# --- rows ------------------------------------------------------------------------------------------


def _show_examples(summary: DatasetSummary) -> None:
    for split, rows in summary.examples.items():
        say("")
        say(f"{split}, {len(rows)} of {summary.meta.splits[split].rows:,} stored")
        for row in rows:
            say("  – " + "\n    ".join(f"{escaped(name, 60)}: {in_words(value)}" for name, value in row.items()))


def in_words(value: Any) -> str:
    """A value of an example on one line."""
    if isinstance(value, Picture):
        return value.note or "×".join(map(str, value.pixels.shape))
    if isinstance(value, Sound):
        return f"{len(value.samples) / value.rate:.2f} s of sound at {value.rate:,} Hz"
    if isinstance(value, Curve):
        ends = f"{number(float(value.values[0]))} … {number(float(value.values[-1]))}" if len(value.values) else ""
        return f"{_spark(value.values)}  {ends}, {len(value.values):,} steps"
    if isinstance(value, np.ndarray):
        if value.size > 16:
            return f"{value.dtype} {list(value.shape)}, {number(float(value.min()))} to {number(float(value.max()))}"
        return escaped(json.dumps(value.tolist()), _CELL)
    if isinstance(value, list):
        return escaped(" ".join(map(str, value)), _CELL)
    return number(value) if isinstance(value, float) else escaped(str(value), _CELL)


def _spark(values: np.ndarray) -> str:
    """A curve on one line, at most 40 characters."""
    some = np.array([part.mean() for part in np.array_split(values, min(len(values), 40))]) if len(values) else values
    if not len(some) or not np.isfinite(some).all():
        return ""
    low, high = some.min(), some.max()
    return "".join(_HEIGHTS[int((value - low) / ((high - low) or 1) * 7)] for value in some)


def _show_dropped(summary: DatasetSummary, left: Dropped) -> None:
    for outcome, pairs in left.pairs.items():
        table = new_table(f"DROPPED {reason(outcome).upper()}", "KEPT INSTEAD")
        for pair in pairs:
            table.add_row(_cell(pair.out), _cell(pair.kept))
        _show(table)
    if left.groups:
        table = new_table("MOST FREQUENT ROWS", "DUPLICATES")
        for group in left.groups:
            table.add_row(_cell(group.kept), f"{group.others:,}")
        _show(table)
    for outcome, rows in left.others.items():
        table = new_table(Text(escaped(reason(outcome), 100)).plain.upper())
        for row in rows:
            table.add_row(_cell(row))
        _show(table)
    if left.broken:
        table = new_table("QUARANTINED ROWS", "ERROR", "EXAMPLE")
        for broken in left.broken:
            table.add_row(f"{broken.rows:,}", Text(escaped(broken.error, _CELL)), _cell(broken.example))
        _show(table)
    for note in notes_of(summary, left):
        say(note)


def notes_of(summary: DatasetSummary, left: Dropped) -> list[str]:
    """Limits of the rows that are shown."""
    notes = []
    if without := sorted({*summary.meta.counts.dropped} - {*left.others}):
        listed = "; ".join(escaped(reason(outcome), 100) for outcome in without)
        notes.append(f"no examples, because the rows were dropped while encoding: {listed}")
    if not left.whole:
        notes.append(f"examples are from the first {left.seen:,} dropped rows; there are more")
    return notes


NOT_FOUND = "(not among the rows that were read)"


def _cell(row: Row | None) -> Text:
    if row is None:
        return Text(NOT_FOUND, style="dim")
    return Text.assemble((escaped(row.place, 300), "bold"), "\n", escaped(row.excerpt, _EXCERPT))


def _show(table: Table) -> None:
    say("")
    show_table(table)


# --- JSON ------------------------------------------------------------------------------------------


def document(summary: DatasetSummary) -> dict[str, Any]:
    """A summary as plain JSON values."""
    left = summary.dropped
    traits: dict[str, dict[str, dict[str, Any]]] = {}
    for (split, role, name), some in sorted((summary.profile or {}).items(), key=lambda item: item[0]):
        counted = document_of(some)
        if isinstance(some, Numbers):
            counted |= {"mean": some.mean, "quantiles": {f"{q:g}": some.quantile(q) for q in QUANTILES}}
        traits.setdefault(split, {}).setdefault(role, {})[name] = counted
    meta = summary.meta
    return {
        **{"name": meta.name, "fingerprint": meta.fingerprint, "task": summary.task, "uri": summary.uri},
        **{"size": summary.size, "files": summary.files, "parent": summary.parent or None},
        "prepared": summary.prepared.isoformat() if summary.prepared else None,
        "sources": [shown(source) for source in meta.spec.get("sources", ())],
        "counts": meta.counts.document(),
        "profile": traits if summary.profile is not None else None,
        "examples": {
            split: [{name: _plain(value) for name, value in row.items()} for row in rows]
            for split, rows in summary.examples.items()
        },
        "pairs": {outcome: [_pair(pair) for pair in pairs] for outcome, pairs in left.pairs.items()},
        "groups": [{"kept": _row(group.kept), "others": group.others} for group in left.groups],
        "left_out": {outcome: [_row(row) for row in rows] for outcome, rows in left.others.items()},
        "quarantined": [{"error": b.error, "rows": b.rows, "example": _row(b.example)} for b in left.broken],
        "notes": [*summary.notes, *notes_of(summary, left)],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"out": _row(pair.out), "kept": _row(pair.kept)}


def _row(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else asdict(row)


def _plain(value: Any) -> Any:
    if isinstance(value, Curve):
        return value.values.tolist()
    if isinstance(value, np.ndarray) and value.size <= 1000:
        return value.tolist()
    return in_words(value) if isinstance(value, (Picture, Sound, np.ndarray)) else value
