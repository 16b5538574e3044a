"""`format: arrow`: IPC streams and files, and the directories that Hugging Face's `Dataset.save_to_disk` writes.

An IPC file is a stream between a magic number and a footer. Both are read as a stream, message by message: that gives
the start of each record batch, and all batches before the end of a file that is cut off. (Arrow Columnar Format,
"Serialization and Interprocess Communication".)
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from maas_ray import storage
from maas_ray.data.sources.base import InputFile, Inspected, Raw
from maas_ray.data.sources.files import Files, digest_of, expanded
from maas_ray.data.sources.parquet import first_line
from maas_ray.data.sources.table import Table, missing, typed
from maas_ray.errors import DataError, NotFoundError, StorageError
from maas_ray.tasks.rows import REST

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"ARROW1\0\0"
_BATCH_ROWS = 256
_STATE, _DICT = "state.json", "dataset_dict.json"


class ArrowSource(Table, Files):
    """`{format: arrow, path: rows.arrow, text: body}`: Arrow IPC files and streams, Feather among them.

    For a directory that Hugging Face's `Dataset.save_to_disk` wrote, the files that its `state.json` names are read.
    Each split of a `DatasetDict` is a source: `{format: arrow, path: saved/test, split: test}`.
    """

    format: Literal["arrow"] = "arrow"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = ("*.arrow", "*.arrows", "*.feather")

    def files(self) -> list[InputFile]:
        if (saved := _document(f"{expanded(self.path).rstrip('/')}/{_DICT}")) is not None:
            lines = [f"{{format: arrow, path: {self.path}/{name}{_split(name)}}}" for name in saved.get("splits") or ()]
            raise DataError(
                f"{self.path} is a DatasetDict; give each of its splits as a source: {', '.join(lines)}",
                code="dataset_dict",
            )
        by_directory: dict[str, list[InputFile]] = {}
        for file in super().files():
            by_directory.setdefault(file.uri.rpartition("/")[0], []).append(file)
        return [file for directory, some in by_directory.items() for file in _saved(directory, some)]

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        uri = inspected.file.uri
        inspected = replace(inspected, sha256=digest_of(uri))
        groups: list[int] = []
        places: list[int] = []
        with storage.open_file(uri) as handle:
            schema = _schema(handle)
            if isinstance(schema, str):
                return inspected  # not Arrow: one row, which reading reports as broken
            if problem := missing(uri, mapping, schema.names):
                return replace(inspected, problem=problem)
            for batch in _batches(handle, schema):
                groups.append(batch.rows)
                places.append(batch.byte)
        if _has_dictionaries(schema):
            return replace(inspected, rows=sum(groups))
        return replace(inspected, rows=sum(groups), groups=tuple(groups), places=tuple(places))

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        import pyarrow as pa

        uri, position, start, end = inspected.file.uri, 0, None, None
        with storage.open_file(uri) as handle:
            schema = _schema(handle)
            if isinstance(schema, str):
                yield Raw(uri, 0, error=f"not readable Arrow: {schema}", rows=inspected.rows)
                return
            if groups is not None and inspected.groups:
                position, start = sum(inspected.groups[: groups.start]), inspected.places[groups.start]
                end = inspected.places[groups.stop] if groups.stop < len(inspected.places) else None
            columns = list(schema.names) if REST in mapping else sorted(set(mapping.values()))
            for batch in _batches(handle, schema, start):
                if end is not None and batch.byte >= end:
                    return
                error, content = batch.error, batch.content
                if content is not None:
                    try:
                        chosen = content.select(columns)
                        chosen.validate(full=True)  # damaged offsets would make Arrow read arbitrary memory
                        for start_row in range(0, batch.rows, _BATCH_ROWS):
                            some = chosen.slice(start_row, _BATCH_ROWS).to_pylist()
                            for number, values in enumerate(some, position + start_row):
                                yield typed(uri, number, values, mapping)
                    except (ValueError, pa.ArrowException) as caught:
                        error = f"a record batch is not readable: {first_line(caught)}"
                if error:
                    yield Raw(uri, position, error=error, rows=batch.rows)
                position += batch.rows


class _Batch(NamedTuple):
    """A record batch, the byte at which it begins, and its rows; or the error from there on, as one row."""

    byte: int
    rows: int
    content: "pa.RecordBatch | None" = None
    error: str = ""


def _saved(directory: str, files: list[InputFile]) -> list[InputFile]:
    """The files with the rows of a directory that Hugging Face wrote; its other files are caches."""
    if (document := _document(f"{directory}/{_STATE}")) is None:
        return files
    if document.get("_indices_files") or document.get("_indices_data_files"):
        raise DataError(
            f"{directory}: its rows are a selection; save it after `flatten_indices()`.", code="dataset_selection"
        )
    named = {str(entry["filename"]) for entry in document.get("_data_files") or ()}
    for name in sorted(named - {PurePosixPath(file.uri).name for file in files}):
        if not storage.exists(f"{directory}/{name}"):
            raise DataError(f"{directory}: {_STATE} names {name}, which does not exist.", code="file_missing")
    return [file for file in files if PurePosixPath(file.uri).name in named] or files


def _split(name: str) -> str:
    from maas_ray.data.names import SPLITS

    return f", split: {name}" if name in SPLITS else ""


def _document(uri: str) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = storage.read_json(uri)
    except NotFoundError:
        return None
    return document


def _schema(handle: IO[bytes]) -> "pa.Schema | str":
    """The schema at the beginning of a file, and the handle after it; or the reason why there is none."""
    import pyarrow as pa

    handle.seek(0)
    handle.seek(len(_MAGIC) if handle.read(len(_MAGIC)) == _MAGIC else 0)
    try:
        return pa.ipc.read_schema(pa.ipc.read_message(pa.PythonFile(handle, mode="r")))
    except (EOFError, OSError, ValueError, pa.ArrowException) as error:
        return first_line(error)


def _has_dictionaries(schema: "pa.Schema") -> bool:
    """True if a batch cannot be read without the batches before it."""
    import pyarrow as pa

    def inside(kind: Any) -> bool:
        return pa.types.is_dictionary(kind) or any(inside(kind.field(at).type) for at in range(kind.num_fields))

    return any(inside(kind) for kind in schema.types)


def _batches(handle: IO[bytes], schema: "pa.Schema", start: int | None = None) -> Iterator[_Batch]:
    """The record batches from a byte on, or from the first one."""
    import pyarrow as pa

    file = pa.PythonFile(handle, mode="r")
    if _has_dictionaries(schema):
        yield from _in_order(handle)
        return
    if start is not None:
        handle.seek(start)
    while True:
        byte = handle.tell()
        try:
            message = pa.ipc.read_message(file)
        except EOFError:
            if handle.tell() == byte:  # the end mark is missing
                yield _Batch(byte, 1, error="the file ends without its end mark; it may have been cut off")
            return
        except StorageError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            yield _Batch(byte, 1, error=f"cut off or damaged from byte {byte} on: {first_line(error)}")
            return
        try:
            batch = pa.ipc.read_record_batch(message, schema)
        except StorageError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            yield _Batch(byte, 1, error=f"the record batch at byte {byte} is not readable: {first_line(error)}")
        else:
            yield _Batch(byte, batch.num_rows, batch)


def _in_order(handle: IO[bytes]) -> Iterator[_Batch]:
    import pyarrow as pa

    handle.seek(0)
    handle.seek(len(_MAGIC) if handle.read(len(_MAGIC)) == _MAGIC else 0)
    try:
        for batch in pa.ipc.open_stream(pa.PythonFile(handle, mode="r")):
            yield _Batch(0, batch.num_rows, batch)
    except (EOFError, OSError, ValueError, pa.ArrowException) as error:
        yield _Batch(0, 1, error=f"cut off or damaged: {first_line(error)}")
