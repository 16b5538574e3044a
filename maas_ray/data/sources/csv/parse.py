"""Rows of a CSV file: streamed, each with the line it begins at, broken ones told apart.

Python's own `csv` parses. Where a stretch of the file is plain (see `csv_scan`), it gets that whole, and the places of
the rows are known beforehand: to count them, none is parsed. Elsewhere it is fed line by line, so that the byte at
which each row ends is known. What cannot be parsed costs its first line: the lines after it are read again as if they
stood alone.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maas_ray.data.sources.csv.scan import Rows, scan, scannable
from maas_ray.errors import StorageError

if TYPE_CHECKING:
    from maas_ray.data.sources.csv.source import CsvSource

_MOST_FIELD = 16 << 20  # characters; a quote that is not closed is noticed here at the latest
_MOST_LINE = 64 << 20  # bytes; a longer one is no row, and never in memory as a whole
_EXCERPT_LINES, _EXCERPT_BYTES = 5, 4 << 10
_READ_BYTES = 1 << 18
# How much is looked at for plain rows at once, bytes; and how many rows are parsed one by one where there are none.
_LEAST_STRETCH, _MOST_STRETCH = 1 << 16, 1 << 18
_LEAST_PATIENCE, _MOST_PATIENCE = 16, 1 << 12


class Place(NamedTuple):
    """Where a row begins: bytes and lines before it."""

    byte: int = 0
    line: int = 0


class Record(NamedTuple):
    """A row's fields, or what is wrong with it; the place it begins at, and the first of its lines."""

    start: Place
    head: bytes
    fields: list[str] | None = None
    error: str = ""


class Stretch(NamedTuple):
    """Rows that stand together: the place of the first, and how many they are."""

    start: Place
    rows: int


def header(source: "CsvSource", uri: str, handle: IO[bytes]) -> tuple[list[str], Place]:
    """The names of the columns, and where the first row begins; no names: the file is empty.

    Raises:
        StorageError: its first row cannot be a header.
    """
    if source.names is not None:
        return list(source.names), Place()
    content = _Content(handle)
    first, end = next(_parsed(source, uri, content, Place()), (None, Place()))
    if first is None:
        return [], Place()
    if first.fields is None:
        raise StorageError(f"{uri}: its first row is no header: {first.error}.")
    names = [name.strip() for name in first.fields]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise StorageError(f"{uri}: its header has {', '.join(map(repr, twice))} more than once; give `names`.")
    return names, end


def records(source: "CsvSource", uri: str, handle: IO[bytes], start: Place | None = None) -> Iterator[Record]:
    """The rows of a file from a place on, where the handle stands; blank lines are left out."""
    for piece in _pieces(source, uri, _Content(handle), start or Place()):
        if isinstance(piece, Record):
            yield piece
        else:
            yield from _records_in(source, uri, piece)


def stretches(
    source: "CsvSource", uri: str, handle: IO[bytes], start: Place, size: int, digest: Any
) -> Iterator[Stretch]:
    """The rows of a file from a place on, in stretches of at least `size` bytes, but for the last.

    Args:
        source: how the file is written.
        uri: of the file.
        handle: stands at the place.
        start: the place.
        size: of a stretch, bytes.
        digest: is given every byte from there on.
    """
    first: Place | None = None
    count = 0
    for piece in _pieces(source, uri, _Content(handle, digest), start):
        if isinstance(piece, Record):
            byte, starts, lines = piece.start.byte, np.zeros(1, np.int64), np.zeros(1, np.int64)
            line = piece.start.line
        else:
            (byte, line), starts, lines = piece.start, piece.rows.starts, piece.rows.lines
        done = 0
        while done < len(starts):
            if first is None:
                first = Place(byte + int(starts[done]), line + int(lines[done]))
            cut = int(np.searchsorted(starts, first.byte + size - byte))
            count += max(cut, done) - done
            done = max(cut, done)
            if done < len(starts):
                yield Stretch(first, count)
                first, count = None, 0
    if first is not None:
        yield Stretch(first, count)


class _Piece(NamedTuple):
    """Bytes that are whole rows, all of them plain."""

    start: Place
    content: bytes
    rows: Rows


def _pieces(source: "CsvSource", uri: str, content: "_Content", place: Place) -> Iterator[_Piece | Record]:
    """Stretches of plain rows; row by row, with care, what stands between them."""
    delimiter = source.delimiter_of(uri)
    plain = scannable(source.charset, delimiter, source.quote)
    # The first row of a file may begin with a byte order mark.
    careful = 1 if place == Place() else 0
    size, patience = _MOST_STRETCH, _LEAST_PATIENCE
    while content.peek(1):
        if plain and not careful:
            stretch = content.peek(size)
            rows = scan(stretch, source.charset, delimiter, source.quote)
            if rows.end:
                yield _Piece(place, stretch[: rows.end], rows)
                content.skip(rows.end)
                place = Place(place.byte + rows.end, place.line + rows.line_count)
            if rows.end and rows.plain:
                size, patience = min(2 * size, _MOST_STRETCH), _LEAST_PATIENCE
                continue
            # Where much is out of order, looking for the next plain row costs more than it saves.
            patience = _LEAST_PATIENCE if rows.end > size // 2 else min(2 * patience, _MOST_PATIENCE)
            careful, size = patience, _LEAST_STRETCH
        for record, end in _parsed(source, uri, content, place):
            place = end
            if record is not None:
                yield record
            careful -= 1
            if plain and careful <= 0:
                break
        careful = 0


def _records_in(source: "CsvSource", uri: str, piece: _Piece) -> Iterator[Record]:
    byte, line = piece.start
    starts, ends, lines = (of.tolist() for of in (piece.rows.starts, piece.rows.ends, piece.rows.lines))
    reader = _reader(source, uri, io.StringIO(piece.content.decode(source.charset), newline="\n"))
    # One that the scan found more or fewer than the parser would be a mistake of this module.
    for fields, start, end, before in zip(filter(None, reader), starts, ends, lines, strict=True):
        yield Record(Place(byte + start, line + before), _head(piece.content[start:end]), fields)


def _head(row: bytes) -> bytes:
    """The first lines of a row."""
    row = row[:_EXCERPT_BYTES]
    return b"".join(io.BytesIO(row).readlines()[:_EXCERPT_LINES]) if b"\n" in row[:-1] else row


def _reader(source: "CsvSource", uri: str, lines: Iterable[str]) -> Any:
    csv.field_size_limit(_MOST_FIELD)
    # Strict, so that a stray quote is an error and not the end of a field somewhere else.
    quoted: dict[str, Any] = {"quotechar": source.quote} if source.quote else {"quoting": csv.QUOTE_NONE}
    return csv.reader(lines, delimiter=source.delimiter_of(uri), strict=True, **quoted)


def _parsed(source: "CsvSource", uri: str, content: "_Content", place: Place) -> Iterator[tuple[Record | None, Place]]:
    """Rows one by one, each with the place after it; None for a blank line."""
    lines = _Lines(content, source.charset, at_start=place == Place())
    before = place.byte - content.position
    reader = _reader(source, uri, lines)
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
        except _LongLineError as caught:
            error = str(caught)
        if error:
            content.back(b"".join(lines.taken[1:]))
            del lines.taken[1:]
            content.skip_line(lines.taken[0])
        end = Place(before + content.position, place.line + len(lines.taken))
        yield (
            (Record(place, _head(b"".join(lines.taken[:_EXCERPT_LINES])), fields, error) if error or fields else None),
            end,
        )
        place = end


class _Content:
    """The bytes of a file from where its handle stands, of which some may be looked at before they are taken."""

    def __init__(self, handle: IO[bytes], digest: Any = None) -> None:
        self._handle, self._digest = handle, digest
        self._held, self._at = b"", 0
        self.position = 0
        """How many bytes were taken."""

    def peek(self, size: int) -> bytes:
        """The next so many bytes; fewer at the end."""
        while len(self._held) - self._at < size and self._more(size):
            pass
        return self._held[self._at : self._at + size]

    def skip(self, size: int) -> None:
        """Take bytes that were seen."""
        self._at += size
        self.position += size

    def back(self, content: bytes) -> None:
        """Give bytes again that were taken last."""
        self.position -= len(content)
        if self._at >= len(content):
            self._at -= len(content)
        else:
            self._held, self._at = content + self._held[self._at :], 0

    def line(self) -> bytes:
        """The next line, with its break; empty at the end. Of one that is longer than any may be, the beginning."""
        searched = self._at
        while (end := self._held.find(b"\n", searched)) < 0 and len(self._held) - self._at < _MOST_LINE:
            searched = len(self._held)
            before = self._at
            if not self._more(len(self._held) - self._at):  # a long line is not copied again and again
                break
            searched -= before - self._at
        end = len(self._held) if end < 0 else end + 1
        found = self._held[self._at : min(end, self._at + _MOST_LINE)]
        self.skip(len(found))
        return found

    def skip_line(self, taken: bytes) -> None:
        """Take the rest of a line whose beginning was taken."""
        while not taken.endswith(b"\n") and (taken := self.line()):
            pass

    def _more(self, size: int) -> bool:
        content = self._handle.read(max(size, _READ_BYTES))
        if self._digest is not None:
            self._digest.update(content)
        self._held, self._at = self._held[self._at :] + content, 0
        return bool(content)


class _LongLineError(Exception):
    """A line cannot be a row."""


class _Lines(Iterator[str]):
    """Decoded lines; remembers those it gave. An error does not end it."""

    def __init__(self, content: _Content, charset: str, *, at_start: bool) -> None:
        self.taken: list[bytes] = []
        self._content, self._charset, self._at_start = content, charset, at_start

    def __next__(self) -> str:
        line = self._content.line()
        if not line:
            raise StopIteration
        self.taken.append(line)
        if len(line) >= _MOST_LINE and not line.endswith(b"\n"):
            raise _LongLineError(f"a line of {_MOST_LINE:,} bytes or more; is it CSV?")
        if self._at_start:
            self._at_start = False
            if self._charset == "utf-8":
                line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(self._charset)


def excerpt(record: Record, limit: int) -> bytes:
    """The beginning of a row, for a person."""
    return record.head[:limit]


class Values:
    """Makes values by column of a file's records: None where one is missing. A column without a name is left out.

    Args:
        names: of the columns.
        source: how the file is written.
    """

    def __init__(self, names: list[str], source: "CsvSource") -> None:
        self._names, self._missing = names, frozenset(source.missing)
        self._all_named = all(names)

    def __call__(self, record: Record) -> dict[str, Any]:
        """A row's values.

        Raises:
            ValueError: it is broken; says how.
        """
        fields, missing = record.fields, self._missing
        if fields is None:
            raise ValueError(record.error)
        if len(fields) != len(self._names):
            raise ValueError(f"{len(fields)} fields, where there are {len(self._names)} columns")
        row = dict(zip(self._names, [None if value.strip() in missing else value for value in fields], strict=True))
        return row if self._all_named else {name: value for name, value in row.items() if name}
