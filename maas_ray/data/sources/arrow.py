"""`format: arrow`: IPC streams and files, and the directories that Hugging Face's `Dataset.save_to_disk` writes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from maas_ray import storage
from maas_ray.data.sources.base import InputFile, Inspected, Raw
from maas_ray.data.sources.files import Files, digest_of, expanded, stamp
from maas_ray.data.sources.ipc import first_line, opened_ipc
from maas_ray.data.sources.table import Table, missing, typed
from maas_ray.data.sources.typed_columns import TypedColumns, features_in
from maas_ray.errors import DataError, InvalidError, NotFoundError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256
_STATE, _DICT, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"


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

    def stamp(self, file: InputFile) -> str:
        beside = f"{file.uri.rpartition('/')[0]}/{_INFO}"
        return f"{stamp(file.uri)} {stamp(beside)}" if storage.exists(beside) else stamp(file.uri)

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        uri = inspected.file.uri
        groups: list[int] = []
        places: list[int] = []
        damage, unread = "", 0
        with storage.open_file(uri) as handle:
            try:
                content = opened_ipc(handle)
            except InvalidError as error:
                return replace(inspected, sha256=digest_of(uri), damage=str(error), unread=inspected.file.size)
            if problem := missing(uri, mapping, content.schema.names):
                return replace(inspected, problem=problem, columns=tuple(content.schema.names))
            for batch in content.batches():
                groups.append(batch.rows)
                places.append(batch.byte)
                if batch.error:
                    damage, unread = batch.error, inspected.file.size - batch.byte
        described = [json.dumps(features, sort_keys=True).encode()] if (features := _info(uri, content.schema)) else []
        inspected = replace(
            inspected, sha256=digest_of(uri, *described), rows=sum(groups), damage=damage, unread=unread
        )
        return replace(inspected, groups=tuple(groups), places=tuple(places)) if content.divisible else inspected

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        import pyarrow as pa

        uri, position, start, end = inspected.file.uri, 0, None, None
        with storage.open_file(uri) as handle:
            try:
                content = opened_ipc(handle)
            except InvalidError as error:
                yield Raw(uri, 0, error=str(error), rest=True)
                return
            if groups is not None and inspected.groups:
                position, start = sum(inspected.groups[: groups.start]), inspected.places[groups.start]
                end = inspected.places[groups.stop] if groups.stop < len(inspected.places) else None
            columns = TypedColumns(content.schema, mapping, _info(uri, content.schema))
            for batch in content.batches(start):
                if end is not None and batch.byte >= end:
                    return
                if batch.load is None:
                    yield Raw(uri, position, error=batch.error, rows=batch.rows, rest=True)
                    return
                try:
                    chosen = batch.load().select(columns.names)
                    chosen.validate(full=True)  # damaged offsets would make Arrow read arbitrary memory
                except StorageError:
                    raise
                except (OSError, ValueError, pa.ArrowException) as error:
                    message = f"a record batch is not readable: {first_line(error)}"
                    yield Raw(uri, position, error=message, rows=batch.rows)
                else:
                    notes = columns.notes(batch.rows)
                    for first in range(0, batch.rows, _BATCH_ROWS):
                        for number, values in enumerate(columns.rows(chosen.slice(first, _BATCH_ROWS)), first):
                            yield typed(uri, position + number, values, mapping, notes)
                            notes = {}
                position += batch.rows


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


def _info(uri: str, schema: "pa.Schema") -> dict[str, Any] | None:
    """The features that `dataset_info.json` describes, for files whose schema describes none."""
    if features_in(schema) is not None:
        return None
    document = _document(f"{uri.rpartition('/')[0]}/{_INFO}") or {}
    features = document.get("features")
    return features if isinstance(features, dict) else None


def _split(name: str) -> str:
    from maas_ray.data.names import SPLITS

    return f", split: {name}" if name in SPLITS else ""


def _document(uri: str) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = storage.read_json(uri)
    except NotFoundError:
        return None
    return document
