"""The base of formats with named columns: the columns of a task in the files, and columns that hold files."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from maas_ray.bodies import decoded_base64
from maas_ray.data.names import FILE_COLUMNS, KEEP_PREFIX
from maas_ray.data.sources.base import EXCERPT_BYTES, Inspected, Raw, Source
from maas_ray.data.sources.files import content
from maas_ray.errors import InvalidError, MaasError, Problem
from maas_ray.tasks.rows import REST, Row

_FETCHED_ROWS, _FETCH_THREADS = 256, 16


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
        return {name: named.get(name, column) for name, column in super().mapping(columns).items()}

    def identity(self) -> dict[str, Any]:
        document = super().identity()
        if not self.columns:
            del document["columns"]
        return document

    def inspect(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        inspected = self.look(inspected, mapping)
        named = {name: column for name, column in mapping.items() if name in FILE_COLUMNS}
        if inspected.problem or not named or not self.refers(inspected, named):
            return inspected
        return replace(inspected, sha256=self._with_references(inspected, named))

    def rows(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        rows = self.records(inspected, groups, mapping)
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


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


def chosen(values: Row, mapping: dict[str, str]) -> Row:
    """A table's row by the task's names of the columns."""
    row = {name: values[column] for name, column in mapping.items() if name != REST}
    if REST in mapping:
        named = {column for name, column in mapping.items() if not name.startswith(KEEP_PREFIX)}
        row[REST] = {column: value for column, value in values.items() if column not in named}
    return row


def typed(uri: str, position: int, values: Row, mapping: dict[str, str]) -> Raw:
    """A row of a table with typed columns."""
    row = chosen(values, mapping)
    head = {name: value[:EXCERPT_BYTES] if isinstance(value, (str, bytes)) else value for name, value in row.items()}
    return Raw(uri, position, row, excerpt=repr(head).encode(errors="replace")[:EXCERPT_BYTES])


def missing(where: str, mapping: dict[str, str], names: Iterable[str]) -> str:
    """The problem of a table without some of the columns. Empty: it has all of them."""
    existing = list(names)
    lacking = [f"{column!r} ({_named_by(name)})" for name, column in mapping.items() if column not in (REST, *existing)]
    if not lacking:
        return ""
    return Problem(f"{where} has no column {', '.join(lacking)}; it has: {', '.join(existing)}.", code="column_missing")


def _named_by(name: str) -> str:
    """The field of a spec that names a column."""
    if name.startswith(KEEP_PREFIX):
        return "named by `keep`"
    return f"set `{name if name in ('text', 'image', 'label') else f'columns.{name}'}`"
