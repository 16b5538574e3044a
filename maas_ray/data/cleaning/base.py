"""A cleaning step: one named, configurable thing that is done to a row before a task parses it.

    raw row ──clean──▶ raw row          what it changed is counted in `notes`
               ├─ Dropped("reason") ─▶  the row is left out, counted by that reason
               └─ ValueError ────────▶  the row is quarantined with the error

A row goes by the task's names for its columns; a value is what the source gave: text may be `bytes` still where a
whole file is a row. A step that needs statistics says so (`fits`); it is fitted on the training split, and fitting
gives the step with the numbers filled in, which is what runs, is saved in the dataset and is used again when the
dataset grows. A step says what happened in its own few words (`too few words`); whoever runs it (`cleaning.clean_row`)
puts the step's name before them.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from maas_ray.data.names import KEEP_PREFIX
from maas_ray.spec import Spec
from maas_ray.tasks.rows import REST, Row

if TYPE_CHECKING:
    from maas_ray.user_code.source import SourceCode

Notes = Counter[str]
"""What steps changed: how often, by a few words such as `EMAIL_ADDRESS`; gathered of several steps, with the step's
name before them."""


class Dropped(Exception):  # noqa: N818  it is no error
    """Raised by a step for a row to be left out; its text is the reason that rows are counted by.

    A reason names the step and not the row: `too short`, not `too short: 12 characters`.
    """


class CleaningStep(Spec, ABC):
    """What a user writes under `clean:`, told apart by `step`.

    A step is a function of the row alone, and its own fields hold all that it was fitted with: it travels between
    processes, and into the dataset's manifest, as `document()`.
    """

    step: str
    """Which step."""

    own_source: "ClassVar[SourceCode | None]" = None
    """The user's own code that it is from."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the sources that it needs beside the task's; it finds them by `value`."""
        return ()

    @property
    def fits(self) -> bool:
        """Whether it has statistics of the training split. True when it is fitted, too: it keeps its place."""
        return False

    def identity(self) -> dict[str, Any]:
        """What decides, beside the rows, what it does: its fields, and digests of the files and the code they name."""
        found = self.document()
        return found if self.own_source is None else found | {"source": self.own_source.digest}

    def fit(self, rows: Iterable[Row]) -> Self:
        """The step with its statistics filled in, from the training split; the order of rows may not matter.

        Raises:
            DataError: there is nothing to fit on.
        """
        return self

    @abstractmethod
    def clean(self, row: Row, notes: Notes) -> Row:
        """The row as it goes on; the same object where nothing changed, else a new one.

        Raises:
            Dropped: the row is left out.
            ValueError: the row is broken; says how.
        """


def value(row: Row, name: str) -> Any:
    """What a row has in a column, whether the task names it, takes it among the rest, or a step reads it.

    Raises:
        KeyError: it has no such column.
    """
    if name in row:
        return row[name]
    if KEEP_PREFIX + name in row:
        return row[KEEP_PREFIX + name]
    return row.get(REST, {})[name]


def changed(row: Row, name: str, new: Any) -> Row:
    """A row with another value in a column, everywhere that it stands."""
    result = {**row, **{place: new for place in (name, KEEP_PREFIX + name) if place in row}}
    if name in row.get(REST, {}):
        result[REST] = {**row[REST], name: new}
    return result


def names_in(row: Row) -> list[str]:
    """The columns of a row, by the names that `value` takes."""
    own = [name.removeprefix(KEEP_PREFIX) for name in row if name != REST]
    return list(dict.fromkeys([*own, *row.get(REST, {})]))


def named(row: Row, name: str) -> Any:
    """`value`, of a column that a user named.

    Raises:
        ValueError: there is none; says which there are.
    """
    try:
        return value(row, name)
    except KeyError:
        raise ValueError(f"there is no column {name!r}; there are: {', '.join(names_in(row))}") from None
