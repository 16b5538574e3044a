"""Files that cannot be read, or not to their end: how many rows they hold, and whether that is too many.

Nobody can count the rows that cannot be read, so they are weighed: the bytes from the damage to the end hold as many
rows as the same number of bytes before it, or, if nothing can be read, as other files of the source. Of a file that was
cut off, only the part that exists is weighed.
"""

from collections.abc import Iterable
from dataclasses import replace

from maas_ray.data.sources.base import Inspected
from maas_ray.errors import DataError

_MAX_NAMED = 5
_MAX_LOST = (1 << 31) - 1  # rows are counted in 32 bits


def weighed(files: list[Inspected]) -> list[Inspected]:
    """The files of one source, with the rows that the unreadable rest of each counts as."""
    rows = sum(_readable_rows(file) for file in files)
    size = sum(file.file.size - file.unread for file in files if _readable_rows(file))

    def weigh(file: Inspected) -> Inspected:
        own_rows, own_size = _readable_rows(file), file.file.size - file.unread
        density = own_rows / own_size if own_rows and own_size else rows / size if size else 0.0
        lost = min(max(1, round(file.unread * density)), _MAX_LOST)
        return replace(file, rows=own_rows + lost, lost=lost)

    return [weigh(file) if file.damage else file for file in files]


def _readable_rows(file: Inspected) -> int:
    return file.rows - file.lost if file.damage else file.rows


def named(files: Iterable[Inspected]) -> list[str]:
    """A line for each damaged file, the worst first: its weight and the error. Of many, only the first few."""
    damaged = sorted((file for file in files if file.damage), key=lambda file: (-file.lost, file.file.uri))
    lines = [f"{file.file.uri}: {file.damage}; {_weight(file)}" for file in damaged[:_MAX_NAMED]]
    more = len(damaged) - _MAX_NAMED
    return [*lines, f"and {more:,} more files"] if more > 0 else lines


def _weight(file: Inspected) -> str:
    if file.lost > 1:
        return f"about {file.lost:,} rows"
    return "nobody can say how many rows followed" if file.rows > file.lost else "one row"


def check(files: list[Inspected], max_quarantined: float) -> None:
    """Refuse an input of which more cannot be read than `max_quarantined` allows, before any row is read.

    Raises:
        DataError: it cannot; names the files.
    """
    lost, rows = sum(file.lost for file in files if file.damage), sum(file.rows for file in files)
    if lost > max_quarantined * rows:
        lines = "".join(f"\n  {line}" for line in named(files))
        raise DataError(
            f"{lost:,} of {rows:,} rows are in files that cannot be read, more than max_quarantined "
            f"({max_quarantined:g}) allows:{lines}\n"
            "Replace these files, drop them with `exclude`, or raise max_quarantined.",
            code="too_many_quarantined",
        )
