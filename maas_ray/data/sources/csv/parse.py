"""Rows of a CSV file, streamed: each with the line it begins at, and broken rows told apart.

Python's `csv` module parses. A stretch of the file that is plain (see `scan`) is parsed as a whole: the positions of
its rows are known beforehand, so rows are counted without parsing any. Other stretches are parsed line by line, so
that the byte at which each row ends is known. A row that cannot be parsed costs its first line only: the lines after
it are parsed again on their own.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from maas_ray.data.sources.csv.dialect import Dialect
from maas_ray.data.sources.csv.nulls import Nulls
from maas_ray.data.sources.csv.scan import Rows, scan, scannable
from maas_ray.errors import InvalidError, StorageError

_MAX_FIELD = 16 << 20  # characters; an unclosed quote is noticed here at the latest
_MAX_LINE = 64 << 20  # bytes; a longer line is not a row, and is never in memory as a whole
_EXCERPT_LINES, _EXCERPT_BYTES = 5, 4 << 10
_READ_BYTES = 1 << 18
_PEEKED_BYTES = 64
_EXCEL_HINT = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=(.)"?\r?\n?')
"""The first line by which Excel is told the delimiter."""
_MARK = "\ufeff"  # the byte order mark of a file that was appended to another
_COMMA_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,3}(?:\.\d{3})+(?:,\d+)?|\d*,\d+)(?:[eE][+-]?\d+)?\s*")
# Bytes that are scanned for plain rows at a time, and rows that are parsed one by one when a scan finds few.
_MIN_STRETCH, _MAX_STRETCH = 1 << 16, 1 << 18
_MIN_PATIENCE, _MAX_PATIENCE = 16, 1 << 12


class Place(NamedTuple):
    """The start of a row: bytes and lines before it."""

    byte: int = 0
    line: int = 0


class Record(NamedTuple):
    """The fields of a row or its error, with its start and its first lines."""

    start: Place
    head: bytes
    fields: list[str] | None = None
    error: str = ""


class Stretch(NamedTuple):
    """Consecutive rows: the start of the first, and their number."""

    start: Place
    rows: int


def header(dialect: Dialect, uri: str, handle: IO[bytes]) -> tuple[list[str], Place]:
    """The names of the columns, and the start of the first row. An empty file has no names.

    Raises:
        StorageError: the first row cannot be a header.
    """
    content = _Content(handle)
    if encoding := _wide_encoding(content.peek(_PEEKED_BYTES)):
        raise StorageError(
            f"{uri}: the file is {encoding}; convert it: iconv -f {encoding} -t UTF-8.", code="unsupported_encoding"
        )
    rows = ((row, end) for row, end in _parsed(dialect, content, Place()) if row is not None)
    first, end = next(rows, (None, Place()))
    start = Place()
    if first is not None and (hint := _EXCEL_HINT.fullmatch(first.head)):
        if (delimiter := hint[1].decode(dialect.charset, "replace")) != dialect.delimiter:
            raise StorageError(
                f"{uri}: its first line says that values are between {delimiter!r}; set `delimiter: {delimiter!r}`.",
                code="wrong_delimiter",
            )
        start = end
        first, end = next(rows, (None, start)) if dialect.names is None else (first, end)
    if dialect.names is not None:
        return list(dialect.names), start
    if first is None:
        return [], start
    if first.fields is None:
        raise StorageError(f"{uri}: the first row is not a header: {first.error}.", code="invalid_header")
    names = [name.strip() for name in first.fields]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        named = ", ".join(map(repr, twice))
        raise StorageError(f"{uri}: the header names {named} more than once; set `names`.", code="duplicate_column")
    return names, end


def _wide_encoding(start: bytes) -> str:
    """The encoding of a file whose characters take two bytes or more, by its first bytes. Empty: another one."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    if len(start) >= 4 and not any(start[1::2]):
        return "UTF-16LE"
    return "UTF-16BE" if len(start) >= 4 and not any(start[::2]) else ""


def records(dialect: Dialect, handle: IO[bytes], start: Place | None = None) -> Iterator[Record]:
    """The rows of a file from `start` on, which is the handle's position. Blank lines are skipped."""
    for piece in _pieces(dialect, _Content(handle), start or Place()):
        if isinstance(piece, Record):
            yield piece
        else:
            yield from _records_in(dialect, piece)


def stretches(dialect: Dialect, handle: IO[bytes], start: Place, size: int, digest: Any) -> Iterator[Stretch]:
    """The rows of a file from `start` on, in stretches of at least `size` bytes; the last may be shorter.

    Args:
        dialect: how the file is written.
        handle: the file, positioned at `start`.
        start: the start of a row.
        size: bytes in a stretch.
        digest: updated with every byte from `start` on.
    """
    first: Place | None = None
    count = 0
    for piece in _pieces(dialect, _Content(handle, digest), start):
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
    """Bytes of whole rows, all of them plain."""

    start: Place
    content: bytes
    rows: Rows


def _pieces(dialect: Dialect, content: "_Content", place: Place) -> Iterator[_Piece | Record]:
    """Stretches of plain rows, and the rows between them one by one."""
    plain = scannable(dialect.charset, dialect.delimiter, dialect.quote, dialect.escape)
    # The first row of a file may begin with a byte order mark.
    careful = 1 if place == Place() else 0
    size, patience = _MAX_STRETCH, _MIN_PATIENCE
    while content.peek(1):
        if plain and not careful:
            stretch = content.peek(size)
            rows = scan(stretch, dialect.charset, dialect.delimiter, dialect.quote, dialect.escape)
            if rows.end:
                yield _Piece(place, stretch[: rows.end], rows)
                content.skip(rows.end)
                place = Place(place.byte + rows.end, place.line + rows.line_count)
            if rows.end and rows.plain:
                size, patience = min(2 * size, _MAX_STRETCH), _MIN_PATIENCE
                continue
            # In a file with many broken rows, scanning for the next plain row costs more than it saves.
            patience = _MIN_PATIENCE if rows.end > size // 2 else min(2 * patience, _MAX_PATIENCE)
            careful, size = patience, _MIN_STRETCH
        for record, end in _parsed(dialect, content, place):
            place = end
            if record is not None:
                yield record
            careful -= 1
            if plain and careful <= 0:
                break
        careful = 0


def _records_in(dialect: Dialect, piece: _Piece) -> Iterator[Record]:
    byte, line = piece.start
    starts, ends, lines = (of.tolist() for of in (piece.rows.starts, piece.rows.ends, piece.rows.lines))
    reader = _reader(dialect, io.StringIO(piece.content.decode(dialect.charset), newline="\n"))
    # `strict`: scan and parser must find the same number of rows.
    for fields, start, end, before in zip(filter(None, reader), starts, ends, lines, strict=True):
        yield Record(Place(byte + start, line + before), _head(piece.content[start:end]), fields)


def _head(row: bytes) -> bytes:
    """The first lines of a row."""
    row = row[:_EXCERPT_BYTES]
    return b"".join(io.BytesIO(row).readlines()[:_EXCERPT_LINES]) if b"\n" in row[:-1] else row


def _reader(dialect: Dialect, lines: Iterable[str]) -> Any:
    csv.field_size_limit(_MAX_FIELD)
    # `strict=True`: a stray quote is an error, and does not shift the end of the field elsewhere.
    quoted: dict[str, Any] = {"quotechar": dialect.quote} if dialect.quote else {"quoting": csv.QUOTE_NONE}
    return csv.reader(lines, delimiter=dialect.delimiter, escapechar=dialect.escape or None, strict=True, **quoted)


def _parsed(dialect: Dialect, content: "_Content", place: Place) -> Iterator[tuple[Record | None, Place]]:
    """Rows one by one, each with its end; None stands for a blank line."""
    lines = _Lines(content, dialect, at_start=place == Place())
    before = place.byte - content.position
    reader = _reader(dialect, lines)
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
            error = f"not {dialect.charset}: byte {caught.object[caught.start]:#04x} at {caught.start}"
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
    """The bytes of a file from the handle's position on. Bytes can be peeked at before they are taken."""

    def __init__(self, handle: IO[bytes], digest: Any = None) -> None:
        self._handle, self._digest = handle, digest
        self._held, self._at = b"", 0
        self.position = 0
        """Number of bytes taken."""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end of the file."""
        while len(self._held) - self._at < size and self._more(size):
            pass
        return self._held[self._at : self._at + size]

    def skip(self, size: int) -> None:
        """Take `size` bytes that were peeked at."""
        self._at += size
        self.position += size

    def back(self, content: bytes) -> None:
        """Put back bytes that were taken last."""
        self.position -= len(content)
        if self._at >= len(content):
            self._at -= len(content)
        else:
            self._held, self._at = content + self._held[self._at :], 0

    def line(self) -> bytes:
        """The next line with its line break; empty at the end. Of a line that is too long, only the beginning."""
        searched = self._at
        while (end := self._held.find(b"\n", searched)) < 0 and len(self._held) - self._at < _MAX_LINE:
            searched = len(self._held)
            before = self._at
            if not self._more(len(self._held) - self._at):  # doubles the buffer
                break
            searched -= before - self._at
        end = len(self._held) if end < 0 else end + 1
        found = self._held[self._at : min(end, self._at + _MAX_LINE)]
        self.skip(len(found))
        return found

    def skip_line(self, taken: bytes) -> None:
        """Take the rest of a line of which `taken` is the beginning."""
        while not taken.endswith(b"\n") and (taken := self.line()):
            pass

    def _more(self, size: int) -> bool:
        content = self._handle.read(max(size, _READ_BYTES))
        if self._digest is not None:
            self._digest.update(content)
        self._held, self._at = self._held[self._at :] + content, 0
        return bool(content)


class _LongLineError(Exception):
    """A line is too long to be a row."""


class _Lines(Iterator[str]):
    """Decoded lines. Remembers the lines it yielded; an error does not end the iteration."""

    def __init__(self, content: _Content, dialect: Dialect, *, at_start: bool) -> None:
        self.taken: list[bytes] = []
        self._content, self._charset, self._at_start = content, dialect.charset, at_start
        self._null, self._escape = _null_of(dialect), dialect.escape

    def __next__(self) -> str:
        line = self._content.line()
        if not line:
            raise StopIteration
        self.taken.append(line)
        if len(line) >= _MAX_LINE and not line.endswith(b"\n"):
            raise _LongLineError(f"a line of {_MAX_LINE:,} bytes or more; is the file CSV?")
        if self._at_start:
            self._at_start = False
            if self._charset == "utf-8":
                line = line.removeprefix(codecs.BOM_UTF8)
        text = line.decode(self._charset)
        return self._null.sub(lambda null: self._escape + null[0], text) if self._null is not None else text


def _null_of(dialect: Dialect) -> re.Pattern[str] | None:
    r"""Finds `\N`, the null of MySQL, Hive and Redshift, whose meaning would be lost with its escape character."""
    if not dialect.escape:
        return None
    delimiter, escape = re.escape(dialect.delimiter), re.escape(dialect.escape)
    return re.compile(rf"(?<![^{delimiter}]){escape}N(?![^{delimiter}\r\n])")


def excerpt(record: Record, limit: int) -> bytes:
    """The beginning of a row, for a person."""
    return record.head[:limit]


class Values:
    """Turns a file's records into values by column. A missing value is None; columns without a name are dropped.

    Args:
        names: the names of the columns.
        dialect: how the file is written.
        used: columns that are needed, for `nulls`.
    """

    def __init__(self, names: list[str], dialect: Dialect, used: frozenset[str] = frozenset()) -> None:
        self._names, self._missing = names, frozenset(dialect.missing)
        self._all_named, self._comma = all(names), dialect.decimal == ","
        self._first = names[0] if len(names) > 1 else None
        self._escaped = rf"\{dialect.quote}".encode() if dialect.quote and not dialect.escape else None
        self.nulls = Nulls(names, used)

    def __call__(self, record: Record) -> dict[str, Any]:
        """The values of one record.

        Raises:
            InvalidError: the record is broken.
        """
        fields, missing = record.fields, self._missing
        if fields is None:
            raise InvalidError("unreadable_row", record.error + self._hint(record))
        if len(fields) != len(self._names):
            problem = f"{len(fields)} fields, but {len(self._names)} columns"
            raise InvalidError("wrong_field_count", problem + self._hint(record))
        if self._first is not None and fields[0].removeprefix(_MARK).strip() == self._first:
            self._check_not_header(fields)
        values = [None if value.strip() in missing else value for value in fields]
        if self._comma:
            values = [value if value is None else _with_point(value) for value in values]
        self.nulls.add(fields, values)
        row = dict(zip(self._names, values, strict=True))
        return row if self._all_named else {name: value for name, value in row.items() if name}

    def _check_not_header(self, fields: list[str]) -> None:
        """Return if a row is not a header: of a file that was appended, or of one that `names` is set for."""
        if [fields[0].removeprefix(_MARK).strip(), *(field.strip() for field in fields[1:])] == self._names:
            raise InvalidError("repeated_header", "the row repeats the names of the columns")

    def _hint(self, record: Record) -> str:
        if self._escaped is None or self._escaped not in record.head:
            return ""
        return rf"""; it has {self._escaped.decode()}: if that is a quote within a value, set `escape: "\\"`"""


def _with_point(text: str) -> str:
    """A number with a decimal comma, and with points between thousands if it has them, in the form of Python."""
    return text.replace(".", "").replace(",", ".") if _COMMA_NUMBER.fullmatch(text) else text
