"""A cleaning step: one named, configurable change or check of a row before a task parses it.

    raw row ──clean──▶ raw row          changes are counted in `notes`
               ├─ Dropped("reason") ─▶  the row is dropped and counted under that reason
               └─ ValueError ────────▶  the row is quarantined with the error

A row has the task's names for its columns. Values are as the source gave them; a text may still be `bytes` if a whole
file is a row. A step that needs statistics says so (`fits`). It is fitted on the training split, which gives the step
with its statistics filled in; that step runs, is saved in the dataset, and is used again when the dataset grows. A step
describes its changes in a few words (`too few words`), and `cleaning.clean_row` puts the step's name before them.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from maas_ray.data.names import KEEP_PREFIX
from maas_ray.errors import InvalidError
from maas_ray.spec import Spec
from maas_ray.tasks.rows import OPTIONAL_PREFIX, REST, Row

if TYPE_CHECKING:
    from maas_ray.user_code.source import SourceCode

Notes = Counter[str]
"""Number of changes by a short description, such as `EMAIL_ADDRESS`. Notes of several steps begin with the step's
name."""


class Dropped(Exception):  # noqa: N818  not an error
    """Raised by a step to drop a row. Its text is the reason under which rows are counted.

    A reason describes the step and not the row: `too short`, not `too short: 12 characters`.
    """


class CleaningStep(Spec, ABC):
    """One entry under `clean:`, selected by `step`.

    A step is a function of the row alone, and its own fields hold its statistics. It travels between processes, and
    into the dataset's manifest, as `document()`.
    """

    step: str
    """Name of the step."""

    own_source: "ClassVar[SourceCode | None]" = None
    """The user's own code that defines the step. None: it belongs to maas_ray."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the sources that it needs beside the task's columns. `value` finds them."""
        return ()

    @property
    def fits(self) -> bool:
        """True if it needs statistics of the training split, also after it was fitted, so that it keeps its place."""
        return False

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result beside the rows: its fields, and digests of the code they name."""
        document = self.document()
        return document if self.own_source is None else document | {"source": self.own_source.digest}

    def fit(self, rows: Iterable[Row]) -> Self:
        """The step with statistics of the training split filled in. The order of the rows must not matter.

        Raises:
            DataError: there are no values to fit on.
        """
        return self

    @abstractmethod
    def clean(self, row: Row, notes: Notes) -> Row:
        """The cleaned row: the same object if nothing changed, else a new one.

        Raises:
            Dropped: the row is dropped.
            ValueError: the row is broken.
        """


_PREFIXES = (KEEP_PREFIX, OPTIONAL_PREFIX)


def value(row: Row, name: str) -> Any:
    """The value of a column, whether the task names it, takes it with all others, or a step reads it.

    Raises:
        KeyError: the row has no such column.
    """
    if name in row:
        return row[name]
    for prefix in _PREFIXES:
        if prefix + name in row:
            return row[prefix + name]
    return row.get(REST, {})[name]


def changed(row: Row, name: str, new: Any) -> Row:
    """A row with another value in a column, in every place that holds it."""
    result = {**row, **{key: new for key in (name, *(prefix + name for prefix in _PREFIXES)) if key in row}}
    # A row of JSON may leave out a column that a step reads under a name of its own.
    if REST in row and (name in row[REST] or (name not in row and KEEP_PREFIX + name in row)):
        result[REST] = {**row[REST], name: new}
    return result


def names_in(row: Row) -> list[str]:
    """The columns of a row, by the names that `value` takes."""
    own = [name.removeprefix(KEEP_PREFIX).removeprefix(OPTIONAL_PREFIX) for name in row if name != REST]
    return list(dict.fromkeys([*own, *row.get(REST, {})]))


def named(row: Row, name: str) -> Any:
    """The value of a column that a user named.

    Raises:
        InvalidError: the row has no such column; names its columns.
    """
    try:
        return value(row, name)
    except KeyError:
        raise InvalidError("column_missing", f"no column {name!r}; columns: {', '.join(names_in(row))}") from None
