"""A cleaning step: one named, configurable thing that is done to a row before a task parses it.

    raw row ──clean──▶ raw row          what it changed is counted in `notes`
               ├─ Dropped("reason") ─▶  the row is left out, counted by that reason
               └─ ValueError ────────▶  the row is quarantined with the error

A row goes by the task's names for its columns; a value is what the source gave: text may be `bytes` still where a
whole file is a row. A step that needs statistics says so (`fits`); it is fitted on the training split, which gives
the step with the numbers filled in, which is what runs, is saved in the dataset and is used again when it grows.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from maas_ray.data.sources import KEEP_PREFIX
from maas_ray.spec import Spec
from maas_ray.tasks.base import REST, Row

if TYPE_CHECKING:
    from maas_ray.tasks.source import Source

Notes = Counter[str]
"""What steps changed: how often, by a few words such as `pii: EMAIL_ADDRESS`."""


class Dropped(Exception):  # noqa: N818  it is no error
    """Raised by a step for a row to be left out; its text is the reason that rows are counted by.

    A reason names the step and not the row: `too short`, not `too short: 12 characters`.
    """


class CleaningStep(Spec, ABC):
    """What a user writes under `clean:`, told apart by `step`."""

    step: str
    """Which step."""

    own_source: "ClassVar[Source | None]" = None
    """The user's own code that it is from."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the sources that it needs beside the task's; it finds them by `value`."""
        return ()

    def identity(self) -> "dict[str, Any]":
        """What decides what it does."""
        return self.document()

    @property
    def fits(self) -> bool:
        """Whether it must be fitted before it can run."""
        return False

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
    """A row with another value in a column."""
    if name in row:
        return {**row, name: new}
    result = {**row, KEEP_PREFIX + name: new} if KEEP_PREFIX + name in row else dict(row)
    if name in row.get(REST, {}):
        result[REST] = {**row[REST], name: new}
    return result


def clean_row(steps: Iterable[CleaningStep], row: Row, notes: Notes) -> Row:
    """A row after all steps.

    Raises:
        Dropped: a step leaves it out; the reason begins with the step's name.
        ValueError: it is broken; begins with the step's name.
    """
    for step in steps:
        try:
            row = step.clean(row, notes)
        except Dropped as dropped:
            raise Dropped(f"{step.step}: {dropped}") from None
        except ValueError as error:
            raise ValueError(f"{step.step}: {error}") from error
    return row
