"""Texts of a CSV file that were read as missing although they may be values, such as `NA` for Namibia."""

from collections import Counter
from collections.abc import Sequence

_SAMPLE_ROWS = 256


class Nulls:
    """Counts texts that were read as missing, by column. In a column of numbers nobody needs to know.

    Args:
        names: the columns.
        used: columns that the task reads.
    """

    def __init__(self, names: Sequence[str], used: frozenset[str]) -> None:
        self._names, self._used = names, used
        self._counts: Counter[tuple[int, str]] = Counter()
        self._sample: list[Sequence[str | None]] = []

    def add(self, fields: Sequence[str], values: Sequence[str | None]) -> None:
        """Add a row, as it is in the file and as it was read."""
        if len(self._sample) < _SAMPLE_ROWS:
            self._sample.append(values)
        if None in values:
            for index, (text, value) in enumerate(zip(fields, values, strict=True)):
                if value is None and text.strip():
                    self._counts[index, text.strip()] += 1

    def notes(self) -> dict[str, int]:
        """The number of such texts, by a description with the fix."""
        return {
            f"{self._names[index]}: {text!r} was read as missing; if it is a value, leave it out of `missing`": count
            for (index, text), count in self._counts.items()
            if self._names[index] in self._used and not self._holds_numbers(index)
        }

    def _holds_numbers(self, index: int) -> bool:
        values = [value for row in self._sample if (value := row[index]) is not None]
        return bool(values) and all(map(_is_number, values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
