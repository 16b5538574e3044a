"""`format: csv`: the fields of a CSV source, and its rows by column."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from maas_ray.data.sources.base import EXCERPT_BYTES, Inspected, Raw
from maas_ray.data.sources.compressed import Content, codec, opened, usual
from maas_ray.data.sources.csv import parse
from maas_ray.data.sources.csv.dialect import Dialect
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.table import Table, chosen, columns_of, missing, noted
from maas_ray.errors import InvalidError

_GROUP_BYTES = 4 << 20


class CsvSource(Table, Files):
    """`{format: csv, path: sales.csv, delimiter: ";"}`: text in columns, parsed as RFC 4180 defines it.

    Every value is a string or missing; the task decides what the string means. Files may be compressed.
    """

    format: Literal["csv"] = "csv"
    """Name of the format."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """Character between two values. None: a tab in files named `.tsv` or `.tab`, else a comma."""
    quote: str = Field('"', max_length=1)
    """Character around values that contain delimiters or line breaks; it is doubled inside them. Empty: no quotes."""
    escape: str = Field("", max_length=1)
    """Character before a quote, a delimiter or a line break that belongs to the value, as Spark, MySQL and Hive write
    it: `"\\\\"`. `\\N` is then a missing value. Empty: there is none."""
    decimal: Literal[".", ","] = "."
    """Sign before the decimals of a number. With a comma, `1.234,5` is read as `1234.5`."""
    charset: str = "utf-8"
    """Encoding of the text, by Python's names: `utf-8` (a byte order mark is removed), `latin-1`, `cp1252`, …"""
    names: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the columns, if the file has no header. None: the first row is the header."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "\\N")
    """Texts that mean a missing value."""
    usual: ClassVar[tuple[str, ...]] = usual("*.csv", "*.tsv", "*.tab")

    @field_validator("charset")
    @classmethod
    def _lines_can_be_found(cls, charset: str) -> str:
        try:
            name = codecs.lookup(charset).name
            if "\n".encode(charset) == b"\n":
                return name
        except LookupError:
            raise InvalidError("unknown_encoding", f"unknown encoding {charset!r}; most files are utf-8.") from None
        raise InvalidError(
            "unsupported_encoding", f"lines of a file in {charset} cannot be found; convert the files to utf-8."
        )

    def dialect(self, uri: str) -> Dialect:
        """How one of its files is written."""
        tabs = any(suffix in (".tsv", ".tab") for suffix in PurePosixPath(uri.lower()).suffixes)
        delimiter = self.delimiter or ("\t" if tabs else ",")
        return Dialect(self.charset, delimiter, self.quote, self.names, self.missing, self.escape, self.decimal)

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        """A file that can be read from the middle is cut; the digest of a compressed one is of its content."""
        uri, digest = inspected.file.uri, sha256()
        dialect = self.dialect(uri)
        places: list[Any] = []
        groups: list[int] = []
        with opened(uri) as handle:
            names, start = parse.header(dialect, uri, handle)
            if names and (problem := missing(uri, mapping, names)):
                return replace(inspected, problem=problem, columns=tuple(names))
            handle.seek(0)
            digest.update(handle.read(start.byte))
            for stretch in parse.stretches(dialect, handle, start, _GROUP_BYTES, digest):
                places.append(stretch.start)
                groups.append(stretch.rows)
            digest.update(handle.damage.encode())
            rows = max(sum(groups), 1 if handle.damage else 0)
            unread = inspected.file.size - handle.damaged_at if handle.damage else 0
        inspected = replace(inspected, sha256=digest.hexdigest(), rows=rows, damage=handle.damage, unread=unread)
        return inspected if codec(uri) else replace(inspected, groups=tuple(groups), places=tuple(places))

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        uri, dialect = inspected.file.uri, self.dialect(inspected.file.uri)
        with opened(uri) as handle:
            names, start = parse.header(dialect, uri, handle)
            values = parse.Values(names, dialect, frozenset(columns_of(mapping, names)))
            yield from noted(self._records(inspected, groups, mapping, handle, start, values), values.nulls.notes)

    def _records(
        self,
        inspected: Inspected,
        groups: range | None,
        mapping: dict[str, str],
        handle: Content,
        start: parse.Place,
        values_of: parse.Values,
    ) -> Iterator[Raw]:
        """The rows of an open file whose first row begins at `start`."""
        uri, left, dialect = inspected.file.uri, inspected.rows, self.dialect(inspected.file.uri)
        if groups is not None and inspected.groups:
            start = inspected.places[groups.start]
            left = sum(inspected.groups[group] for group in groups)
        handle.seek(start.byte)
        line = start.line
        parsed = parse.records(dialect, handle, start)
        for record in _whole(parsed, handle) if codec(uri) else islice(parsed, left):
            line, excerpt = record.start.line + 1, parse.excerpt(record, EXCERPT_BYTES)
            try:
                values = values_of(record)
            except ValueError as error:
                yield Raw(uri, line, error=str(error), excerpt=excerpt)
            else:
                yield Raw(uri, line, chosen(values, mapping), excerpt=excerpt)
        if handle.damage:
            yield Raw(uri, line, error=handle.damage, rest=True)


def _whole(records: Iterable[Any], content: Content) -> Iterator[Any]:
    """All records, except the last one before damage: it may be only the beginning of a record."""
    held = None
    for record in records:
        if held is not None:
            yield held
        held = record
    if held is not None and not content.damage:
        yield held
