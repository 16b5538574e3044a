"""The base of formats with named columns: the columns of a task in the files, and columns that hold files."""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice
from typing import Any, Literal
from urllib.parse import unquote

from maas_ray.bodies import decoded_base64
from maas_ray.data.names import DROP_PREFIX, FILE_COLUMNS, KEEP_PREFIX
from maas_ray.data.sources.base import EXCERPT_BYTES, InputFile, Inspected, Raw, Source
from maas_ray.data.sources.files import content
from maas_ray.errors import InvalidError, MaasError, Problem
from maas_ray.tasks.rows import OPTIONAL_PREFIX, REST, Row

_NOT_NEEDED = (DROP_PREFIX, OPTIONAL_PREFIX)
_FETCHED_ROWS, _FETCH_THREADS = 256, 16
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Row numbers that pandas wrote: a column without a name, by the names that pandas gives to it.
_UNNAMED = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*|")


class Table(Source):
    """Rows with named columns. Columns that the task does not need are ignored."""

    columns: dict[str, str] = {}
    """Names in the files, by the task's names of the columns: `{label: category}`. Other columns keep their names."""
    text: str = "text"
    """Column that holds the text; the same as in `columns`."""
    image: str = "image"
    """Column that holds the image: its encoded bytes, or a string as `encoding` says."""
    label: str = "label"
    """Column that holds the label."""
    encoding: Literal["path", "base64"] = "path"
    """Meaning of a string in a column of images or audio: a path, relative to the table's directory, or the bytes of
    the file in base64, which may be folded or a `data:` URL."""

    @abstractmethod
    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        """Like `inspect`, without the files that rows name."""

    @abstractmethod
    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        """Like `rows`, with the paths of files in place of their bytes."""

    def refers(self, inspected: Inspected, named: dict[str, str]) -> bool:
        """True if its columns of files may hold paths."""
        return self.encoding == "path"

    def mapping(self, columns: tuple[str, ...]) -> dict[str, str]:
        named = {"text": self.text, "image": self.image, "label": self.label} | self.columns
        mapping = super().mapping(columns)
        # An optional column that is named here must exist.
        chosen = {name: name.removeprefix(OPTIONAL_PREFIX) for name in columns}
        return {
            plain if plain in self.columns else name: named.get(plain, mapping[name]) for name, plain in chosen.items()
        }

    def identity(self) -> dict[str, Any]:
        document = super().identity()
        if not self.columns:
            del document["columns"]
        return document

    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        inspected = self.look(inspected, in_file(mapping, partitions(inspected.file)))
        named = {name: column for name, column in mapping.items() if name in FILE_COLUMNS}
        if inspected.problem or not named or not self.refers(inspected, named):
            return inspected
        return replace(inspected, sha256=self._with_references(inspected, named))

    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        by_directory = partitions(inspected.file)
        rows = self.records(inspected, groups, in_file(mapping, by_directory))
        if by_directory:
            rows = (_partitioned(raw, by_directory, mapping) for raw in rows)
        for name in FILE_COLUMNS:
            if name in mapping:
                rows = map(partial(self._load, name), rows)
        return rows

    def _with_references(self, inspected: Inspected, named: dict[str, str]) -> str:
        """The digest of a table and the files that it names."""

        def digest(raw: Raw) -> bytes:
            for name in named:
                raw = self._load(name, raw)
            # The error's message would contain a path, which must not decide the digest.
            parts = [b"\0none"] if raw.row is None else [_bytes(value) for value in raw.row.values()]
            return b"".join(sha256(part).digest() for part in parts)

        total = sha256(inspected.sha256.encode())
        rows = self.records(inspected, range(len(inspected.groups)) if inspected.groups else None, named)
        with ThreadPoolExecutor(_FETCH_THREADS) as threads:
            while batch := list(islice(rows, _FETCHED_ROWS)):
                for part in threads.map(digest, batch):
                    total.update(part)
        return total.hexdigest()

    def _load(self, name: str, raw: Raw) -> Raw:
        """The row with the bytes of a file in place of its path."""
        if raw.row is None or raw.row[name] is None:
            return raw
        try:
            return replace(raw, row={**raw.row, name: self._file_bytes(raw.path, name, raw.row[name])})
        except (ValueError, MaasError) as error:
            return replace(raw, row=None, error=str(error))

    def _file_bytes(self, table: str, name: str, value: Any) -> bytes:
        if isinstance(value, dict):  # the form in which Hugging Face's datasets store images and audio
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise InvalidError("not_a_file", f"{name} is a {type(value).__name__}; give bytes or a string")
        if self.encoding == "base64":
            try:
                return decoded_base64(value)
            except ValueError as error:
                raise InvalidError("invalid_base64", f"{name} is not base64: {error}") from error
        if "://" in value or value.startswith("/"):
            return content(value)
        return content(f"{table.rpartition('/')[0]}/{value}")


def partitions(file: InputFile) -> dict[str, str | None]:
    """The columns that the directories of a file name, as Hive, Spark, pandas and Polars write them: `country=DE`."""
    parts = (part.partition("=") for part in file.relative.split("/")[:-1])
    named = {unquote(name): unquote(value) for name, sign, value in parts if name and sign}
    return {name: None if value == _HIVE_NULL else value for name, value in named.items()}


def in_file(mapping: dict[str, str], by_directory: Mapping[str, str | None]) -> dict[str, str]:
    """The columns that are read from the file itself."""
    return {name: column for name, column in mapping.items() if column not in by_directory}


def _partitioned(raw: Raw, by_directory: Mapping[str, str | None], mapping: dict[str, str]) -> Raw:
    """A row with the columns that its directories name."""
    if raw.row is None:
        return raw
    named = chosen(dict(by_directory), {n: c for n, c in mapping.items() if c in by_directory or n == REST})
    if REST not in mapping:
        return replace(raw, row=raw.row | named)
    apart = _not_rest(mapping)
    inside = {column: value for column, value in raw.row[REST].items() if column not in by_directory}
    inside |= {column: value for column, value in by_directory.items() if column not in apart}
    return replace(raw, row=raw.row | named | {REST: inside})


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


def noted(rows: Iterator[Raw], notes: Callable[[], dict[str, int]]) -> Iterator[Raw]:
    """Rows, the last of which carries notes about all of them."""
    held: Raw | None = None
    for raw in rows:
        if held is not None:
            yield held
        held = raw
    if held is not None:
        yield replace(held, notes=notes())


def needed(mapping: dict[str, str]) -> list[str]:
    """The columns of the files that must exist."""
    return [column for name, column in mapping.items() if name != REST and not name.startswith(_NOT_NEEDED)]


def columns_of(mapping: dict[str, str], existing: Iterable[str]) -> list[str]:
    """The columns of a typed file that are read."""
    if REST not in mapping:
        optional = {column for name, column in mapping.items() if name.startswith(OPTIONAL_PREFIX)}
        return sorted({*needed(mapping), *optional.intersection(existing)})
    named, unread = set(needed(mapping)), _not_rest(mapping)
    return [name for name in existing if name in named or (name not in unread and not _unnamed(name))]


def chosen(values: Row, mapping: dict[str, str]) -> Row:
    """A table's row by the task's names of the columns. A column that a row leaves out is null."""
    pairs = tuple(mapping.items())
    row = {name: values.get(column) for name, column in _named(pairs)}
    if REST in mapping:
        row[REST] = {column: values[column] for column in _rest(tuple(values), pairs)}
    return row


@lru_cache(1 << 10)
def _named(mapping: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name, c) for name, c in mapping if name != REST and not name.startswith(DROP_PREFIX))


@lru_cache(1 << 10)
def _rest(columns: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The columns of `REST`. They are the same for most rows of a file, and cost much."""
    apart = _not_rest(dict(mapping))
    return tuple(column for column in columns if column not in apart and not _unnamed(column))


def _unnamed(column: str) -> bool:
    return _UNNAMED.fullmatch(column) is not None


def _not_rest(mapping: dict[str, str]) -> set[str]:
    """The columns that do not belong to `REST`."""
    return {column for name, column in mapping.items() if not name.startswith(KEEP_PREFIX)}


def typed(
    uri: str, position: int, values: Row | InvalidError, mapping: dict[str, str], notes: Mapping[str, int] | None = None
) -> Raw:
    """A row of a table with typed columns, or the error in its place."""
    if isinstance(values, InvalidError):
        return Raw(uri, position, error=str(values), notes=notes or {})
    row = chosen(values, mapping)
    head = {name: value[:EXCERPT_BYTES] if isinstance(value, (str, bytes)) else value for name, value in row.items()}
    return Raw(uri, position, row, excerpt=repr(head).encode(errors="replace")[:EXCERPT_BYTES], notes=notes or {})


def missing(where: str, mapping: dict[str, str], names: Iterable[str]) -> str:
    """The problem of a table without some of the columns, or with two of one name. Empty: it has each of them once."""
    existing = list(names)
    read = {*needed(mapping), *(existing if REST in mapping else ())}
    if twice := [name for name, count in Counter(existing).items() if name in read and name and count > 1]:
        named = ", ".join(map(repr, twice))
        return Problem(f"{where} has the column {named} more than once; rename one of them.", code="duplicate_column")
    required = set(needed(mapping)) - {*existing}
    lacking = [f"{column!r} ({_named_by(name)})" for name, column in mapping.items() if column in required]
    if not lacking:
        return ""
    return Problem(f"{where} has no column {', '.join(lacking)}; it has: {', '.join(existing)}.", code="column_missing")


def _named_by(name: str) -> str:
    """The field of a spec that names a column."""
    if name.startswith(KEEP_PREFIX):
        return "named by `keep`"
    return f"set `{name if name in ('text', 'image', 'label') else f'columns.{name}'}`"
