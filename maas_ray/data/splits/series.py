"""Series whose steps are rows of a table: the rows are joined in order, and cut at the ends of splits.

The last steps of a series are for testing, the steps before them for validation, and the rest for training, so that a
model is evaluated on steps after those it learnt from. If the source names its split, all steps fall into that split.
No step is in two splits, and so no window is. A series lies in one file. One reader holds the whole file in memory,
eight bytes for each value.
"""

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from maas_ray.data.reading import Raw
from maas_ray.errors import InvalidError
from maas_ray.tasks.cells import category, cell, number
from maas_ray.tasks.rows import Row, Steps
from maas_ray.tasks.tables.times import instant

MAX_STEPS = 1 << 14
"""Approximate length at which a longer stretch is cut, because its windows are many times as large as itself."""


def joined(rows: Iterator[Raw], steps: Steps, shares: tuple[float, ...]) -> Iterator[Raw]:
    """Stretches of series: `series`, its name; `start`, steps before it; `values` float64 [steps, columns].

    A row that holds lists is a whole series and is passed through.

    Args:
        rows: the rows of a whole file; all name the same split, or none does.
        steps: how they are joined.
        shares: shares of validation and test, if the source names no split.
    """
    by_name: dict[str, _Series] = {}
    path, given = "", None
    for raw in rows:
        path, given = raw.path, raw.split
        if raw.row is None or isinstance(raw.row[steps.values[0]], (list, tuple)):
            yield raw
            continue
        try:
            name = category(cell(raw.row[steps.series])) if steps.series else ""
            by_name.setdefault(name, _Series(len(steps.values))).add(raw, steps)
        except ValueError as error:
            yield replace(raw, row=None, error=str(error))
    for name, series in by_name.items():
        yield from series.stretches(path, name, shares if given is None else given, steps)


class _Series:
    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.values, self.positions = array("d"), array("q")
        # 1 for a good row; 0 for a quarantined row, which becomes a missing step.
        self.counted = bytearray()
        self.times: dict[int | float, int] = {}  # index of each step by its time
        self.kind = ""  # kind of its times

    def add(self, raw: Raw, steps: Steps) -> None:
        """Add a step.

        Raises:
            InvalidError: its time cannot be used.
            ValueError: a value is not a number.
        """
        row: Row = raw.row or {}
        if steps.time:
            self._add_time(steps.time, row[steps.time], steps.time_format)
        numbers, problem = [], ""
        for name in steps.values:
            try:
                numbers.append(number(cell(row[name])))
            except ValueError as error:
                numbers.append(float("nan"))
                problem = f"column {name!r}: {error}"
        self.values.extend(numbers)
        self.positions.append(raw.position)
        self.counted.append(not problem)
        if problem:
            raise ValueError(problem)

    def _add_time(self, column: str, value: Any, form: str | None) -> None:
        try:
            when = instant(value, form)
        except ValueError as error:
            raise InvalidError("invalid_time", f"column {column!r} holds {error}") from error
        if when is None:
            raise InvalidError("time_missing", f"column {column!r} does not say when this step was")
        self.kind = self.kind or when.kind
        if when.kind != self.kind:
            raise InvalidError(
                "mixed_times",
                f"column {column!r} holds {str(value)!r}, {when.kind}; this series began with {self.kind}",
            )
        if when.value in self.times:
            raise InvalidError(
                "duplicate_time",
                f"column {column!r} has {str(value)!r} twice in one series; name the column that tells series apart in "
                "`series`, and write local times with their UTC offsets",
            )
        self.times[when.value] = len(self.positions)

    def stretches(self, path: str, name: str, splits: tuple[float, ...] | int, steps: Steps) -> Iterator[Raw]:
        """The series, cut at the ends of splits. Each stretch of a split has windows that no other stretch has.

        Args:
            path: the file.
            name: the name of the series.
            splits: shares of validation and test; or the number of the split that all steps fall into.
            steps: how they are joined.
        """
        order = np.arange(len(self.positions))
        if steps.time is not None:
            order = np.array([self.times[when] for when in sorted(self.times)], np.int64)
        values = np.frombuffer(self.values, np.float64).reshape(-1, self.columns)[order]
        counted = np.frombuffer(self.counted, np.uint8)[order]
        positions = np.frombuffer(self.positions, np.int64)[order]
        if isinstance(splits, int):
            lengths = {splits: len(order)}
        else:
            held_out = [round(share * len(order)) for share in splits]
            lengths = dict(enumerate((len(order) - sum(held_out), *held_out)))
        start = 0
        for split, length in lengths.items():
            seen = start  # earlier steps are counted in an earlier stretch
            for low, high in _cuts(start, start + length, steps.window, steps.stride):
                row = {"series": name, "start": low, "values": values[low:high]}
                if counted[low:high].any():
                    rows = int(counted[seen:high].sum())
                    yield Raw(path, int(positions[low]), row, rows=rows, split=split)
                seen = high
            start += length


def _cuts(start: int, end: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the stretches of a split. Each window is in exactly one stretch, and no step is lost."""
    windows = max(MAX_STEPS - window, window) // stride + 1
    step = windows * stride
    while end - (start + step) >= window:
        yield start, start + step + max(window - stride, 0)
        start += step
    if start < end:
        yield start, end
