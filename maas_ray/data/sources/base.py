"""What every format has in common: the fields of a source, a piece of one, what a look at it found, and its rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from maas_ray.data.names import KEEP_PREFIX
from maas_ray.spec import Spec
from maas_ray.tasks.rows import Row

MOST_BYTES = 128 << 20
"""The largest row, line, document, image or clip that is read; a larger one is quarantined: it would be in the memory
of several processes at once."""
EXCERPT_BYTES = 1000


@dataclass(frozen=True)
class InputFile:
    """A file, or what a look is taken at by itself: its URI, its path below the source (POSIX), its size in bytes."""

    uri: str
    relative: str
    size: int


@dataclass(frozen=True)
class Inspected:
    """What one look at a file found."""

    file: InputFile
    sha256: str = ""
    """Of its content; of the images it refers to as well, where it is a table of paths."""
    stamp: str = ""
    """Changes when the file does: size, times, or what the storage has for it."""
    rows: int = 1
    groups: tuple[int, ...] = ()
    """Rows in each group that can be read by itself, such as a row group of Parquet; empty: it is not cut."""
    places: tuple[Any, ...] = ()
    """Where each group begins, in the format's own terms."""
    problem: str = ""
    """Why this file cannot be used at all. Empty: it can."""


@dataclass(frozen=True)
class Raw:
    """A row as it stands in a file, or what stands there instead.

    `rows` is how many rows it stands for: more than one where a whole stretch of a file cannot be read, or where they
    are joined. `split` is the number of the one it must fall into. None: its content decides.
    """

    path: str
    position: int
    row: Row | None = None
    error: str = ""
    excerpt: bytes = b""
    rows: int = 1
    split: int | None = None


class Source(Spec, ABC):
    """Where rows come from."""

    format: str
    """Which format."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often an epoch sees each of its training rows: 2 is twice, 0.5 is a half of them, chosen by their content."""
    split: Literal["train", "validation", "test"] | None = None
    """The split that all its rows fall into. None: the content of each decides."""

    gives: ClassVar[tuple[str, ...] | None] = None
    """Columns of tasks that this format can give. None: any."""
    usual: ClassVar[tuple[str, ...]] = ()
    """Names that files of this format usually have."""

    @classmethod
    def name_of(cls) -> str:
        """What `format` says."""
        return str(cls.model_fields["format"].default)

    @property
    @abstractmethod
    def location(self) -> str:
        """What a person calls it; holds no secret."""

    @abstractmethod
    def files(self) -> list[InputFile]:
        """All that it means, in an order of its own.

        Raises:
            DataError: there is nothing, or it cannot be listed.
        """

    @abstractmethod
    def stamp(self, file: InputFile) -> str:
        """What changes when a file, or what belongs to it, does."""

    @abstractmethod
    def inspect(self, found: Inspected, mapping: dict[str, str]) -> Inspected:
        """Read a file once, for its digest, the number of its rows and its columns.

        Raises:
            MaasError: it cannot be read at all.
            OSError: the same.
        """

    @abstractmethod
    def rows(self, found: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        """The rows of a file, or of some of its groups; those that cannot be read with their error.

        There are as many as the look found, and what is broken is so each time.
        """

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        """Where a task's columns stand in the files, and those to keep, which have their names there."""
        return {name: name.removeprefix(KEEP_PREFIX) for name in columns}

    def identity(self) -> dict[str, Any]:
        """What decides what is read from a file, wherever it lies."""
        document = self.model_dump(mode="json")
        for name in ("weight", "split"):  # a source without them is what it was before there were any
            if document[name] == type(self).model_fields[name].default:
                del document[name]
        return document


@dataclass(frozen=True)
class Part:
    """A piece of work for one reader: a file, or some of its groups."""

    source: Source
    file: Inspected
    groups: range | None = None
