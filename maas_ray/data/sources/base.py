"""The base of all formats: the fields of a source, its files, the inspection of a file, and raw rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field

from maas_ray.data.names import DROP_PREFIX, KEEP_PREFIX
from maas_ray.spec import Spec
from maas_ray.tasks.rows import OPTIONAL_PREFIX, Row

MAX_BYTES = 128 << 20
"""Maximum size of a row, line, document, image or clip. A larger one is quarantined, because several processes would
hold it in memory at once."""
EXCERPT_BYTES = 1000


@dataclass(frozen=True)
class InputFile:
    """A unit of input: its URI, its path below the source (POSIX), and its size in bytes. Mostly a file."""

    uri: str
    relative: str
    size: int


@dataclass(frozen=True)
class Inspected:
    """The result of inspecting a file."""

    file: InputFile
    sha256: str = ""
    """Sha256 of the content; for a table of paths, of the files that it names as well."""
    stamp: str = ""
    """Changes when the file changes: size, times, or the version in the storage."""
    rows: int = 1
    groups: tuple[int, ...] = ()
    """Rows in each group that can be read by itself, such as a row group of Parquet. Empty: the file is not cut."""
    places: tuple[Any, ...] = ()
    """The start of each group, in the format's own terms."""
    problem: str = ""
    """The reason why the file cannot be used, an `errors.Problem`. Empty: it can."""
    damage: str = ""
    """The reason why the file, or the rest of it, cannot be read. It counts as one of `rows`, see `damage.weighed`."""
    unread: int = 0
    """Bytes of the file from the damage to the end."""
    lost: int = 1
    """Rows that the unreadable rest counts as."""
    lacking: tuple[str, ...] = ()
    """Needed columns that none of its rows has. Another file of the source may have them."""
    columns: tuple[str, ...] = ()
    """Columns of its rows, if needed ones are lacking."""


@dataclass(frozen=True)
class Raw:
    """A row as it is in a file, or the error in its place.

    `rows` is the number of rows that it stands for: more than one if a whole stretch of a file cannot be read, or if
    rows are joined. `split` is the number of the split that it must fall into. None: its content decides. `rest` marks
    the error that stands for the unreadable rest of a file. `notes` counts what was read in a way that may surprise.
    """

    path: str
    position: int
    row: Row | None = None
    error: str = ""
    excerpt: bytes = b""
    rows: int = 1
    split: int | None = None
    rest: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)


def _unprefixed(name: str) -> str:
    return name.removeprefix(KEEP_PREFIX).removeprefix(DROP_PREFIX).removeprefix(OPTIONAL_PREFIX)


class Source(Spec, ABC):
    """One entry under `sources:`, selected by `format`."""

    format: str
    """Name of the format."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often an epoch sees each training row: 2 is twice, and 0.5 is half of the rows, chosen by their content."""
    split: Literal["train", "validation", "test"] | None = None
    """The split of all its rows. None: the content of each row decides."""

    gives: ClassVar[tuple[str, ...] | None] = None
    """Columns of tasks that this format can have. None: any."""
    usual: ClassVar[tuple[str, ...]] = ()
    """Names that files of this format usually have."""
    possible: ClassVar[tuple[str, ...]] = ()
    """Further names that they may have. In a directory, such files are often something else."""

    @classmethod
    def name_of(cls) -> str:
        """The value of `format`."""
        return str(cls.model_fields["format"].default)

    @property
    @abstractmethod
    def location(self) -> str:
        """A name for a person. It must not contain secrets."""

    @abstractmethod
    def files(self) -> list[InputFile]:
        """All files, in an order of its own.

        Raises:
            DataError: there are no files, or they cannot be listed.
        """

    @abstractmethod
    def stamp(self, file: InputFile) -> str:
        """A text that changes when a file, or another file that belongs to it, changes."""

    @abstractmethod
    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        """Read a file once for its digest, its number of rows and its columns.

        Raises:
            MaasError: the file cannot be read.
            OSError: the same.
        """

    @abstractmethod
    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        """The rows of a file, or of some of its groups; an unreadable row comes with its error.

        There are as many rows as the inspection counted, and the same rows are broken every time.
        """

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        """The names in the files of a task's columns. Columns with a prefix have their own names."""
        return {name: _unprefixed(name) for name in columns}

    def identity(self) -> dict[str, Any]:
        """Everything that decides which rows are read from a file, except its path."""
        document = self.model_dump(mode="json")
        for name in ("weight", "split"):  # defaults are removed, so that fingerprints of older versions still hold
            if document[name] == type(self).model_fields[name].default:
                del document[name]
        return document


@dataclass(frozen=True)
class Part:
    """A unit of work for one reader: a file, or some of its groups."""

    source: Source
    file: Inspected
    groups: range | None = None
