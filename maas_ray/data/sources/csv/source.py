"""CSV: what a file is written like, and its rows by column; `maas_ray.data.sources.csv.parse` parses."""

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
from maas_ray.data.sources.files import Files
from maas_ray.data.sources.table import Table, chosen, missing

_GROUP_BYTES = 4 << 20


class CsvSource(Table, Files):
    """`{format: csv, path: sales.csv, delimiter: ";"}`: text in columns, parsed as RFC 4180 has it.

    Every value is a string or missing: what it means is the task's affair. Files may be compressed.
    """

    format: Literal["csv"] = "csv"
    """Which format."""
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """What stands between two values. None: a tab in files named `.tsv` or `.tab`, else a comma."""
    quote: str = Field('"', max_length=1)
    """What stands around values with delimiters or line breaks in them, and is doubled there. Empty: nothing does."""
    charset: str = "utf-8"
    """How text is encoded, by Python's names: `utf-8` (a byte order mark is left out), `latin-1`, `cp1252`, …"""
    names: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the columns, where the first row is none of them. None: they stand in the first row."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
    """What stands where a value is missing."""
    usual: ClassVar[tuple[str, ...]] = usual("*.csv", "*.tsv", "*.tab")

    @field_validator("charset")
    @classmethod
    def _lines_can_be_found(cls, charset: str) -> str:
        try:
            name = codecs.lookup(charset).name
            if "\n".encode(charset) == b"\n":
                return name
        except LookupError:
            raise ValueError(f"{charset!r} is no encoding that Python knows; most files are utf-8.") from None
        raise ValueError(f"lines cannot be found in {charset}; convert the files to utf-8.")

    def delimiter_of(self, uri: str) -> str:
        """What stands between the values of a file."""
        tabs = any(suffix in (".tsv", ".tab") for suffix in PurePosixPath(uri.lower()).suffixes)
        return self.delimiter or ("\t" if tabs else ",")

    def look(self, found: Inspected, mapping: dict[str, str]) -> Inspected:
        """A file that can be read from the middle is cut; the digest of a compressed one is of its content."""
        from maas_ray.data.sources.csv import parse as delimited

        uri, digest = found.file.uri, sha256()
        places: list[Any] = []
        groups: list[int] = []
        with opened(uri) as handle:
            names, start = delimited.header(self, uri, handle)
            if names and (problem := missing(uri, mapping, names)):
                return replace(found, problem=problem)
            handle.seek(0)
            digest.update(handle.read(start.byte))
            for stretch in delimited.stretches(self, uri, handle, start, _GROUP_BYTES, digest):
                places.append(stretch.start)
                groups.append(stretch.rows)
            digest.update(handle.damage.encode())
            rows = max(sum(groups), 1 if handle.damage else 0)
        found = replace(found, sha256=digest.hexdigest(), rows=rows)
        return found if codec(uri) else replace(found, groups=tuple(groups), places=tuple(places))

    def records(self, found: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        from maas_ray.data.sources.csv import parse as delimited

        uri, left = found.file.uri, found.rows
        with opened(uri) as handle:
            names, start = delimited.header(self, uri, handle)
            if groups is not None and found.groups:
                start = found.places[groups.start]
                left = sum(found.groups[group] for group in groups)
            handle.seek(start.byte)
            number = start.line
            values_of = delimited.Values(names, self)
            found_rows = delimited.records(self, uri, handle, start)
            rows = _whole(found_rows, handle) if codec(uri) else islice(found_rows, left)
            for record in rows:
                number, excerpt = record.start.line + 1, delimited.excerpt(record, EXCERPT_BYTES)
                try:
                    values = values_of(record)
                except ValueError as error:
                    yield Raw(uri, number, error=str(error), excerpt=excerpt)
                else:
                    yield Raw(uri, number, chosen(values, mapping), excerpt=excerpt)
            if handle.damage:
                yield Raw(uri, number, error=handle.damage)


def _whole(records: Iterable[Any], content: Content) -> Iterator[Any]:
    """Rows but for the last before damage, which may be the beginning of one."""
    held = None
    for record in records:
        if held is not None:
            yield held
        held = record
    if held is not None and not content.damage:
        yield held
