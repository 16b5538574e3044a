"""Rows of a CSV file: streamed, each with the line it begins at, broken ones told apart.

Python's own `csv` parses; this feeds it line by line, so it knows the byte at which each row ends, and a file can be
cut there. What cannot be parsed costs its first line: the lines after it are read again as if they stood alone.
"""

import codecs
import csv
import lzma
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from fsspec.compression import compr
from fsspec.utils import infer_compression

from maas_ray import storage
from maas_ray.data.sources import CsvSource
from maas_ray.errors import StorageError

_MOST_FIELD = 16 << 20  # characters; a quote that is not closed is noticed here at the latest
_EXCERPT_LINES = 5


class Place(NamedTuple):
    """Where a row begins: bytes and lines before it."""

    byte: int = 0
    line: int = 0


class Record(NamedTuple):
    """A row's fields, or what is wrong with it; its lines, and the place after it."""

    start: Place
    end: Place
    lines: list[bytes]
    fields: list[str] | None = None
    error: str = ""


def is_compressed(uri: str) -> bool:
    """Whether a file's name says so: such a file cannot be read from the middle."""
    return infer_compression(uri) is not None


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """A file to read from, decompressed where its name says that it is compressed.

    Raises:
        StorageError: it cannot be read, or is not what its name says.
    """
    compression = infer_compression(uri)
    with storage.open_file(uri) as handle:
        if compression is None:
            yield handle
            return
        try:
            with compr[compression](handle, mode="rb") as content:
                yield content
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise StorageError(f"{uri} is no whole {compression} file: {error}.") from error


def header(source: CsvSource, uri: str, handle: IO[bytes]) -> tuple[list[str], Place]:
    """The names of the columns, and where the first row begins; no names: the file is empty.

    Raises:
        StorageError: its first row cannot be a header.
    """
    if source.names is not None:
        return list(source.names), Place()
    first = next(records(source, uri, handle), None)
    if first is None:
        return [], Place()
    if first.fields is None:
        raise StorageError(f"{uri}: its first row is no header: {first.error}.")
    names = [name.strip() for name in first.fields]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise StorageError(f"{uri}: its header has {', '.join(map(repr, twice))} more than once; give `names`.")
    return names, first.end


def records(source: CsvSource, uri: str, content: Iterator[bytes], start: Place | None = None) -> Iterator[Record]:
    """The rows in the lines of a file from a place on; blank lines are left out."""
    csv.field_size_limit(_MOST_FIELD)
    place = start or Place()
    lines = _Lines(content, source.charset, at_start=place == Place())
    # Strict, so that a stray quote is an error and not the end of a field somewhere else.
    quoted: dict[str, Any] = {"quotechar": source.quote} if source.quote else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, delimiter=source.delimiter_of(uri), strict=True, **quoted)
    while True:
        lines.taken = []
        fields, error = None, ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as caught:
            error = f"not CSV: {caught}"
        except UnicodeDecodeError as caught:
            error = f"not {source.charset}: byte {caught.object[caught.start]:#04x} at {caught.start}"
        if error:
            lines.again(lines.taken[1:])
            del lines.taken[1:]
        end = Place(place.byte + len(b"".join(lines.taken)), place.line + len(lines.taken))
        if error or fields:
            yield Record(place, end, lines.taken, fields, error)
        place = end


class _Lines(Iterator[str]):
    """Decoded lines; remembers those it gave. An error does not end it."""

    def __init__(self, content: Iterator[bytes], charset: str, *, at_start: bool) -> None:
        self.taken: list[bytes] = []
        self._content, self._charset, self._at_start = content, charset, at_start
        self._again: deque[bytes] = deque()

    def again(self, lines: list[bytes]) -> None:
        """Give these lines once more."""
        self._again.extendleft(reversed(lines))

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._content)
        self.taken.append(line)
        if self._at_start:
            self._at_start = False
            if self._charset == "utf-8":
                line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(self._charset)


def excerpt(record: Record, limit: int) -> bytes:
    """The beginning of a row, for a person."""
    return b"".join(record.lines[:_EXCERPT_LINES])[:limit]


def values(record: Record, names: list[str], source: CsvSource) -> dict[str, Any]:
    """A row's values by column; None where one is missing. A column without a name is left out.

    Raises:
        ValueError: it is broken; says how.
    """
    if record.fields is None:
        raise ValueError(record.error)
    if len(record.fields) != len(names):
        raise ValueError(f"{len(record.fields)} fields, where there are {len(names)} columns")
    return {
        name: None if value.strip() in source.missing else value
        for name, value in zip(names, record.fields, strict=True)
        if name
    }
