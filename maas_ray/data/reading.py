"""From files to raw rows: what a file holds, and its rows one by one, broken ones with their error.

A file is looked at twice. `inspect` reads it once for its digest, the number of its rows and its columns,
before any work starts; `read` gives its rows. Neither knows what a task makes of a row.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from maas_ray import storage
from maas_ray.bodies import decoded_base64
from maas_ray.data import delimited
from maas_ray.data.delimited import Place
from maas_ray.data.sources import (
    FILE_COLUMNS,
    KEEP_PREFIX,
    TABLES,
    AnySource,
    AudioFolderSource,
    CsvSource,
    ImageFolderSource,
    InputFile,
    JsonlSource,
    ParquetSource,
)
from maas_ray.errors import DataError, MaasError, NotFoundError
from maas_ray.tasks import Row
from maas_ray.tasks.base import REST

EXCERPT_BYTES = 1000
_CHUNK = 1 << 20
_BATCH_ROWS = 256
_GROUP_BYTES = 4 << 20
_FETCH_THREADS = 16


@dataclass(frozen=True)
class Inspected:
    """What one look at a file found."""

    file: InputFile
    sha256: str = ""
    """Of its bytes; of the images it refers to as well, where it is a table of paths."""
    stamp: str = ""
    """Changes when the file does: size, times, or what the storage has for it."""
    rows: int = 1
    groups: tuple[int, ...] = ()
    """Rows in each row group of a Parquet file, or stretch of a CSV file; empty: it is not cut, or not readable."""
    places: tuple[Place, ...] = ()
    """Where each stretch of a CSV file begins."""
    problem: str = ""
    """Why this file cannot be used at all. Empty: it can."""


@dataclass(frozen=True)
class Part:
    """A piece of work for one reader: a file, or some of its groups."""

    source: AnySource
    file: Inspected
    groups: range | None = None


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


def stamp(uri: str) -> str:
    """What changes when a file changes."""
    fs, path = storage.filesystem(uri)
    return str(fs.ukey(path))


def stamp_of(source: AnySource, file: InputFile) -> str:
    """Of a file, and of what belongs to it."""
    uri = file.uri
    if isinstance(source, AudioFolderSource) and storage.exists(_transcript(uri)):
        return f"{stamp(uri)} {stamp(_transcript(uri))}"
    return stamp(uri)


def _transcript(uri: str) -> str:
    """Where the transcript of a clip stands."""
    return f"{uri.rpartition('.')[0]}.txt"


# --- the first look --------------------------------------------------------------------------------


def inspect(source: AnySource, file: InputFile, columns: tuple[str, ...], before: Inspected | None = None) -> Inspected:
    """Read a file once, for what has to be known before any work starts; what was found `before` holds by its stamp."""
    mapping = source.mapping(columns)
    try:
        found = Inspected(file, stamp=stamp_of(source, file))
        if before is not None and before.stamp == found.stamp:
            return before
        if isinstance(source, JsonlSource):
            return _inspect_jsonl(source, found, mapping)
        if isinstance(source, CsvSource):
            return _inspect_csv(source, found, mapping)
        with storage.open_file(file.uri) as handle:
            digest = sha256()
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
            if isinstance(source, AudioFolderSource) and storage.exists(_transcript(file.uri)):
                digest.update(sha256(storage.read_bytes(_transcript(file.uri))).digest())
            found = replace(found, sha256=digest.hexdigest())
            return _inspect_parquet(source, found, handle, mapping) if isinstance(source, ParquetSource) else found
    except (OSError, MaasError) as error:
        return Inspected(file, problem=f"{file.uri} cannot be read: {error}")


def _inspect_jsonl(source: JsonlSource, found: Inspected, mapping: dict[str, str]) -> Inspected:
    digest, rows, keys = sha256(), 0, None
    with storage.open_file(found.file.uri) as handle:
        for line in handle:
            digest.update(line)
            if line.strip():
                rows += 1
                keys = keys or _keys(line)
    if keys is not None and (problem := _missing(found.file, mapping, list(keys))):
        return replace(found, problem=problem)
    found = replace(found, sha256=digest.hexdigest(), rows=rows)
    return _with_references(source, found, mapping, None)


def _keys(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _inspect_csv(source: CsvSource, found: Inspected, mapping: dict[str, str]) -> Inspected:
    """A file that can be read from the middle is cut; the digest of a compressed one is of its content."""
    uri, digest = found.file.uri, sha256()
    places: list[Place] = []
    groups: list[int] = []
    with delimited.opened(uri) as handle:
        names, start = delimited.header(source, uri, handle)
        if names and (problem := _missing(found.file, mapping, names)):
            return replace(found, problem=problem)
        handle.seek(0)
        digest.update(handle.read(start.byte))
        for record in delimited.records(source, uri, _hashed(handle, digest), start):
            if not places or record.start.byte - places[-1].byte >= _GROUP_BYTES:
                places.append(record.start)
                groups.append(0)
            groups[-1] += 1
    found = replace(found, sha256=digest.hexdigest(), rows=sum(groups))
    if not delimited.is_compressed(uri):
        found = replace(found, groups=tuple(groups), places=tuple(places))
    return _with_references(source, found, mapping, range(len(found.groups)))


def _hashed(lines: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for line in lines:
        digest.update(line)
        yield line


def _inspect_parquet(source: ParquetSource, found: Inspected, handle: Any, mapping: dict[str, str]) -> Inspected:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        handle.seek(0)
        parquet = pq.ParquetFile(handle)
        names = parquet.schema_arrow.names
        groups = tuple(parquet.metadata.row_group(place).num_rows for place in range(parquet.num_row_groups))
    except (OSError, pa.ArrowException):
        return found  # not Parquet at all: one row that `read` finds broken
    if problem := _missing(found.file, mapping, names):
        return replace(found, problem=problem)
    found = replace(found, groups=groups, rows=sum(groups))
    kinds = [parquet.schema_arrow.field(mapping[name]).type for name in FILE_COLUMNS if name in mapping]
    hold_bytes = all(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)
    return found if hold_bytes else _with_references(source, found, mapping, range(len(groups)))


def _missing(file: InputFile, mapping: dict[str, str], names: list[str]) -> str:
    lacking = [f"{column!r} ({_named_by(name)})" for name, column in mapping.items() if column not in (REST, *names)]
    return f"{file.uri} has no column {', '.join(lacking)}; it has: {', '.join(names)}." if lacking else ""


def _named_by(name: str) -> str:
    """What in a spec says where a column stands."""
    if name.startswith(KEEP_PREFIX):
        return "named by `keep`"
    return f"set `{name if name in ('text', 'image', 'label') else f'columns.{name}'}`"


def _with_references(
    source: JsonlSource | ParquetSource | CsvSource, found: Inspected, mapping: dict[str, str], groups: range | None
) -> Inspected:
    """The digest of a table of paths covers the files that it names."""
    named = tuple(name for name in FILE_COLUMNS if name in mapping)
    if not named or source.encoding != "path":
        return found

    def digest(raw: Raw) -> bytes:
        contents = [raw.error.encode()] if raw.row is None else raw.row.values()
        parts = [content if isinstance(content, bytes) else repr(content).encode() for content in contents]
        return b"".join(sha256(part).digest() for part in parts)

    total = sha256(found.sha256.encode())
    rows = read(Part(source, found, groups), named)
    with ThreadPoolExecutor(_FETCH_THREADS) as threads:
        while batch := [raw for raw, _ in zip(rows, range(_BATCH_ROWS), strict=False)]:
            for part in threads.map(digest, batch):
                total.update(part)
    return replace(found, sha256=total.hexdigest())


# --- the rows --------------------------------------------------------------------------------------


def read(part: Part, columns: tuple[str, ...]) -> Iterator[Raw]:
    """The rows of a part, by the task's column names. What cannot be read comes as a row with an error.

    Raises:
        DataError: the file is not the one that was inspected any more.
    """
    source, file = part.source, part.file
    mapping = source.mapping(columns)
    if isinstance(source, JsonlSource):
        rows = _read_jsonl(file.file.uri, mapping)
    elif isinstance(source, ParquetSource):
        rows = _read_parquet(part, mapping)
    elif isinstance(source, CsvSource):
        rows = _read_csv(source, part, mapping)
    else:
        rows = _read_whole(source, file.file, mapping)
    if isinstance(source, TABLES):
        for name in FILE_COLUMNS:
            if name in mapping:
                rows = map(partial(_load_file, source, name), rows)
    yield from rows
    if stamp_of(source, file.file) != file.stamp:
        raise DataError(f"{file.file.uri} changed while it was read; nothing was committed. Run again.")


def _chosen(values: Row, mapping: dict[str, str]) -> Row:
    """A table's row by the task's names for its columns."""
    row = {name: values[column] for name, column in mapping.items() if name != REST}
    if REST in mapping:
        named = {column for name, column in mapping.items() if not name.startswith(KEEP_PREFIX)}
        row[REST] = {column: value for column, value in values.items() if column not in named}
    return row


def _read_whole(source: AnySource, file: InputFile, mapping: dict[str, str]) -> Iterator[Raw]:
    content = storage.read_bytes(file.uri)
    if isinstance(source, AudioFolderSource):
        said: Row = {"audio": content}
        try:
            if "transcript" in mapping.values():
                said["transcript"] = storage.read_bytes(_transcript(file.uri))
        except NotFoundError:
            error = f"no transcript beside it: {PurePosixPath(_transcript(file.relative)).name} is not there"
            yield Raw(file.uri, 0, error=error, excerpt=content[:EXCERPT_BYTES])
        else:
            row = {name: said[column] for name, column in mapping.items()}
            yield Raw(file.uri, 0, row, excerpt=content[:EXCERPT_BYTES])
        return
    if not isinstance(source, ImageFolderSource):
        yield Raw(file.uri, 0, {"text": content}, excerpt=content[:EXCERPT_BYTES])
        return
    label = PurePosixPath(file.relative).parent.name
    if label or "label" not in mapping:
        values: Row = {"image": content, "label": label}
        row = {name: values[column] for name, column in mapping.items()}
        yield Raw(file.uri, 0, row, excerpt=content[:EXCERPT_BYTES])
    else:
        error = "lies in no directory that could be its label; give the directory above as `path`"
        yield Raw(file.uri, 0, error=error, excerpt=content[:EXCERPT_BYTES])


def _read_jsonl(uri: str, mapping: dict[str, str]) -> Iterator[Raw]:
    with storage.open_file(uri) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            excerpt = line[:EXCERPT_BYTES]
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError(f"a JSON {type(value).__name__}, not an object")
                lacking = [column for column in mapping.values() if column not in (REST, *value)]
                if lacking:
                    raise ValueError(f"no field {', '.join(map(repr, lacking))}")
            except json.JSONDecodeError as error:
                yield Raw(uri, number, error=f"not JSON: {error.msg}", excerpt=excerpt)
            except (ValueError, RecursionError) as error:
                yield Raw(uri, number, error=str(error), excerpt=excerpt)
            else:
                yield Raw(uri, number, _chosen(value, mapping), excerpt=excerpt)


def _read_csv(source: CsvSource, part: Part, mapping: dict[str, str]) -> Iterator[Raw]:
    uri, left = part.file.file.uri, part.file.rows
    with delimited.opened(uri) as handle:
        names, start = delimited.header(source, uri, handle)
        if part.groups is not None and part.file.groups:
            start = part.file.places[part.groups.start]
            left = sum(part.file.groups[group] for group in part.groups)
        handle.seek(start.byte)
        for _, record in zip(range(left), delimited.records(source, uri, handle, start), strict=False):
            number, excerpt = record.start.line + 1, delimited.excerpt(record, EXCERPT_BYTES)
            try:
                values = delimited.values(record, names, source)
            except ValueError as error:
                yield Raw(uri, number, error=str(error), excerpt=excerpt)
            else:
                yield Raw(uri, number, _chosen(values, mapping), excerpt=excerpt)


def _read_parquet(part: Part, mapping: dict[str, str]) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri, groups = part.file.file.uri, part.file.groups
    position = sum(groups[: part.groups.start]) if part.groups else 0
    with storage.open_file(uri) as handle:
        try:
            parquet = pq.ParquetFile(handle, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            yield Raw(uri, 0, error=f"not readable Parquet: {_first_line(error)}", rows=part.file.rows)
            return
        for group in part.groups or ():
            end = position + groups[group]
            try:
                columns = None if REST in mapping else sorted(set(mapping.values()))
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    for values in batch.to_pylist():
                        row = _chosen(values, mapping)
                        yield Raw(uri, position, row, excerpt=repr(row).encode(errors="replace")[:EXCERPT_BYTES])
                        position += 1
            except (OSError, pa.ArrowException) as error:
                message = f"row group {group} is not readable: {_first_line(error)}"
                yield Raw(uri, position, error=message, rows=end - position)
                position = end


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _load_file(source: JsonlSource | ParquetSource | CsvSource, name: str, raw: Raw) -> Raw:
    """The row with a file's bytes in place of what leads to them."""
    if raw.row is None or raw.row[name] is None:
        return raw
    try:
        return replace(raw, row={**raw.row, name: _file_bytes(source, raw.path, name, raw.row[name])})
    except (ValueError, MaasError) as error:
        return replace(raw, row=None, error=str(error))


def _file_bytes(source: JsonlSource | ParquetSource | CsvSource, table: str, name: str, value: Any) -> bytes:
    if isinstance(value, dict):  # as Hugging Face's datasets store images and audio
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{name} is a {type(value).__name__}; give bytes or a string")
    if source.encoding == "base64":
        try:
            return decoded_base64(value)
        except ValueError as error:
            raise ValueError(f"{name} is not base64: {error}") from error
    if "://" in value or value.startswith("/"):
        return storage.read_bytes(value)
    return storage.read_bytes(f"{table.rpartition('/')[0]}/{value}")
