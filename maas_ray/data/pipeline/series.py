"""Series whose steps are a table's rows: joined, in order, and cut where splits end.

Of each series the last steps are for testing, those before them for validation, the rest for training: what is to be
foretold lies behind what was learnt from. Where the source names its split, all steps fall there. No step is in two
splits, so no window is either. A whole file is in the memory of one reader meanwhile, eight bytes for each value; a
series lies in one file.
"""

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from maas_ray.data.reading import Raw
from maas_ray.tasks.rows import Row, Steps
from maas_ray.tasks.tables.cells import Cell, category, cell, number

MOST_STEPS = 1 << 14
"""About where a longer stretch is cut: windows are many times as large as what they are cut from."""


def joined(rows: Iterator[Raw], steps: Steps, shares: tuple[float, ...]) -> Iterator[Raw]:
    """Stretches of series: `series`, its name; `start`, steps before it; `values` float64 [steps, columns].

    A row that holds lists is a whole series, and comes as it is.

    Args:
        rows: of a whole file, all of which name the same split or none.
        steps: how they are joined.
        shares: of validation and test, where no split is named.
    """
    found: dict[str, _Series] = {}
    path, given = "", None
    for raw in rows:
        path, given = raw.path, raw.split
        if raw.row is None or isinstance(raw.row[steps.values[0]], (list, tuple)):
            yield raw
            continue
        try:
            name = category(cell(raw.row[steps.series])) if steps.series else ""
            found.setdefault(name, _Series(len(steps.values))).add(raw, steps)
        except ValueError as error:
            yield replace(raw, row=None, error=str(error))
    for name, series in found.items():
        yield from series.stretches(path, name, shares if given is None else given, steps)


class _Series:
    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.values, self.positions = array("d"), array("q")
        # 1 for a row that is well, 0 for one that is in quarantine: a missing step stands in its place.
        self.counted = bytearray()
        self.times: dict[Any, int] = {}  # when, to the step's place; numbers, or texts

    def add(self, raw: Raw, steps: Steps) -> None:
        """Add a step.

        Raises:
            ValueError: it is none, or holds a value that is no number.
        """
        row: Row = raw.row or {}
        if steps.time:
            when = _when(cell(row[steps.time]))
            if when is None:
                raise ValueError(f"column {steps.time!r} does not say when this step was")
            first = next(iter(self.times), when)
            if type(first) is not type(when):
                raise ValueError(f"column {steps.time!r} holds {when!r}; this series began at {first!r}")
            if when in self.times:
                raise ValueError(
                    f"column {steps.time!r} has {when!r} twice in one series; name the column that tells series "
                    "apart in `series`"
                )
            self.times[when] = len(self.positions)
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

    def stretches(self, path: str, name: str, splits: tuple[float, ...] | int, steps: Steps) -> Iterator[Raw]:
        """The series, cut where splits end. Of a split's stretches each has the windows that the others lack.

        Args:
            path: of the file.
            name: of the series.
            splits: shares of validation and test; or the number of the split that all steps fall into.
            steps: how they are joined.
        """
        order = np.arange(len(self.positions))
        if steps.time is not None:
            order = np.array([self.times[when] for when in sorted(self.times)])
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
            seen = start  # steps before it are in a stretch, and are counted there
            for low, high in _cuts(start, start + length, steps.window, steps.stride):
                row = {"series": name, "start": low, "values": values[low:high]}
                if counted[low:high].any():
                    rows = int(counted[seen:high].sum())
                    yield Raw(path, int(positions[low]), row, rows=rows, split=split)
                seen = high
            start += length


def _cuts(start: int, end: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Where stretches of a split begin and end: each window is in one, none in two, and so no step is left over."""
    windows = max(MOST_STEPS - window, window) // stride + 1
    step = windows * stride
    while end - (start + step) >= window:
        yield start, start + step + max(window - stride, 0)
        start += step
    if start < end:
        yield start, end


def _when(time: Cell) -> float | str | None:
    """A number, or a text, as which dates are ordered if they are written as ISO 8601 has it."""
    try:
        return None if time is None else number(time)
    except ValueError:
        return category(time)
