"""Terminal output: lines, tables, and progress that fits a terminal or a log file."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as _Bar
from rich.table import Table

from maas_ray.redact import hide_secrets, without_secrets

_LINE_SECONDS = 5.0
_PIPE_WIDTH = 200  # a pipe has no width, and its lines should not wrap


def console() -> Console:
    """A console on the current `sys.stdout`, which tests and callers replace."""
    return Console(highlight=False, soft_wrap=True, file=sys.stdout)


def say(message: str) -> None:
    """Print one line without buffering, also through a pipe."""
    console().print(hide_secrets(message), markup=False)
    sys.stdout.flush()


def print_json(document: Any) -> None:
    """Print a document as JSON, without the secrets of its URLs."""
    print(json.dumps(without_secrets(document), indent=2, ensure_ascii=False, default=str))


class _Table(Table):
    """A table that shows no secrets of URLs."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(hide_secrets(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def new_table(*columns: str) -> Table:
    """A plain table with these headings. A cell that is too wide is folded."""
    table = _Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_table(table: Table) -> None:
    """Print a table as wide as the terminal, or with a fixed width through a pipe."""
    out = console()
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    out.print(table)


def duration(seconds: float) -> str:
    """A duration, as in `1 h 12 min`, `3 min 20 s` or `4 s`."""
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Progress:
    """Progress of one operation: a bar in a terminal, otherwise a line every few seconds."""

    def __init__(self, label: str, bar: _Bar | None, total: float | None) -> None:
        self._label, self._bar, self._total = label, bar, total
        self._task: TaskID | None = bar.add_task(label, total=total, note="") if bar else None
        self._printed = time.monotonic()

    def update(self, done: float, note: str = "", *, total: float | None = None) -> None:
        """Set the progress. `note` adds a value, such as the loss."""
        self._total = total if total is not None else self._total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._printed >= _LINE_SECONDS:
            self._printed = time.monotonic()
            count = f"{done:,.0f}" + (f"/{self._total:,.0f}" if self._total else "")
            say(f"{self._label} {count}{'  ' + note if note else ''}")

    def line(self, message: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False)
        else:
            say(message)


@contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Progress]:
    """Show the progress of one operation while the block runs."""
    out = console()
    if not out.is_terminal:
        yield Progress(label, None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with _Bar(*columns, console=out, transient=True) as bar:
        yield Progress(label, bar, total)
