"""The plan of a batch prediction: input files to pieces, each with the name of its output file.

A piece's name is a digest of its rows' files. So the same input gives the same names, and a piece whose output exists
is not answered again. Apart from reading the input, the module is pure.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from maas_ray import storage
from maas_ray.batch.writing import about
from maas_ray.data.names import FILE_COLUMNS
from maas_ray.data.reading import Inspected, Part, Raw, read
from maas_ray.data.sources import FORMATS, AnySource, InputFile, list_files
from maas_ray.errors import DataError, InvalidError
from maas_ray.spec import digest_of
from maas_ray.tasks.rows import REST, Row
from maas_ray.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

_SAMPLED_FILES, _SAMPLED_ROWS = 8, 200
_SHORT = 1000  # characters; a column of longer strings is kept only if it is requested
_PART_BYTES = 64 << 20


def guessed(path: str) -> AnySource:
    """The source of a path, by the names of its files.

    Raises:
        DataError: the files are of several formats.
    """
    kinds = {kind.name_of(): kind for kind in FORMATS if kind.usual}
    name = PurePosixPath(path).name.lower()
    said = [
        form
        for form, kind in kinds.items()
        if form != "text" and any(fnmatch(name, one) for one in (*kind.usual, *kind.possible))
    ]
    if not said and not re.search(r"[*?[]", path):
        said = [form for form in kinds if form != "text" and _holds(form, path)]
    if len(said) > 1:
        raise DataError(
            f"{path} holds files of several formats, {' and '.join(said)}; choose one with `format`.",
            code="format_ambiguous",
        )
    return _source(said[0] if said else "text", path)


def _source(form: str, path: str) -> AnySource:
    source: AnySource = TypeAdapter(AnySource).validate_python({"format": form, "path": path})
    return source


def _holds(form: str, path: str) -> bool:
    """True if a directory holds files with the usual names of a format."""
    source = _source(form, path)
    try:
        names = [PurePosixPath(file.uri).name.lower() for file in list_files(source)]
    except DataError:
        return False
    return any(fnmatch(name, usual) for name in names for usual in source.usual)


def listed(source: AnySource, output: str) -> list[InputFile]:
    """The files of a source, without those inside the output: a glob may match answers from before a crash.

    Raises:
        DataError: there are no other files.
    """
    fs, inner = storage.filesystem(output)
    own = (inner if storage.is_local(output) else fs.unstrip_protocol(inner)).rstrip("/")
    below = (f"{own}/", f"{about(own)}/")
    files = [file for file in list_files(source) if not file.uri.startswith(below)]
    if not files:
        raise DataError(
            f"{source.location}: all its files are in the output, {output}; choose another output directory.",
            code="input_in_output",
        )
    return files


@dataclass(frozen=True)
class Fields:
    """The columns of a source that the fields of a task's request are read from.

    Args:
        required: fields that every row must have.
        optional: fields that a row may have.
        any_of: fields of which every row must have at least one, if no field is required by itself. A request without
            any of them would be answered, but the answer would mean nothing.
        names: the column of each field.
        columns: columns requested from the reader.
        given: the reader's name for the only field of a source that is not a table. Empty: the source is a table.
        strict: True if values have types; in CSV they are all text.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    any_of: tuple[str, ...]
    names: dict[str, str]
    columns: tuple[str, ...]
    given: str = ""
    strict: bool = True

    @classmethod
    def of(cls, task: Task, source: AnySource, parameters: dict[str, Any]) -> "Fields":
        """The fields of a task, from a source.

        Raises:
            DataError: the source cannot give them, or a parameter is not a field.
        """
        fields = {field.alias or name: field for name, field in task.request.model_fields.items()}
        unknown = [name for name in parameters if name not in fields]
        if unknown:
            has = f"a request does not have this field; it has: {', '.join(fields)}"
            raise DataError(f"parameters: {', '.join(unknown)}: {has}.", code="parameter_unknown")
        required = tuple(name for name, field in fields.items() if field.is_required() and name not in parameters)
        if source.gives is not None and not (required or any(tensor.optional for tensor in task.inputs)):
            required = tuple(name for name in source.gives[:1] if name in fields)
        optional = tuple(name for name in fields if name not in required)
        names = source.mapping(tuple(fields))
        if source.gives is None:
            by_itself = any(field.is_required() for field in fields.values())
            any_of = () if by_itself else tuple(name for name in optional if name not in parameters)
            return cls(required, optional, any_of, names, (*required, REST), strict=source.format != "csv")
        given = next((name for name in source.gives if name in required), "text" if source.gives == ("text",) else "")
        if len(required) != 1 or not given or (given != required[0] and required[0] == task.file):
            raise DataError(
                f"{source.location}: format {source.format} cannot give {' and '.join(required) or 'the fields'} of a "
                f"request to {task.spec.type}; use a table with these columns.",
                code="format_unsuitable",
            )
        return cls(required, optional, (), names, (given,), given)

    def request(self, row: Row) -> Row:
        """The fields of a request in a row as it was read.

        Raises:
            InvalidError: it does not have any of the columns.
        """
        if self.given:
            value = row[self.given]
            if self.given == "text" and isinstance(value, bytes):
                value = value.decode("utf-8-sig")
            return {self.required[0]: value}
        fields = {name: row[name] for name in self.required if row[name] is not None}
        rest: Row = row[REST]
        if self.any_of and not any(self.names[name] in rest for name in self.any_of):
            columns = _listed(self.names[name] for name in self.any_of)
            raise InvalidError("column_missing", f"must have at least one of the columns {columns}")
        columns_of = ((name, self.names[name]) for name in self.optional)
        return fields | {name: rest[column] for name, column in columns_of if rest.get(column) is not None}

    def lacking(self, task: Task, rows: Sequence[Row]) -> list[str]:
        """Columns of a table's model that are missing from some rows, as `kept` gives them.

        Raises:
            DataError: the rows do not have any column that a request to the task could be made of.
        """
        present = {name: None for row in rows for name in row}
        if present and self.any_of and not any(self.names[name] in present for name in self.any_of):
            raise DataError(
                f"a request to {task.spec.type} needs one of {_listed(self.any_of)}, read from the columns "
                f"{_listed(self.names[name] for name in self.any_of)}; the input has only {_listed(present)}. Map them "
                "with `columns`.",
                code="column_missing",
            )
        may_miss = [tensor.name for tensor in task.inputs if tensor.optional and tensor.name in self.any_of]
        return [self.names[name] for name in may_miss if self.names[name] not in present] if present else []

    def kept(self, row: Row) -> Row:
        """All columns of a row that could be kept, by their names in the file."""
        if self.given:
            return {}
        rest: Row = row[REST]
        return {self.names[name]: row[name] for name in self.required if name not in FILE_COLUMNS} | rest


def _listed(names: Iterable[str]) -> str:
    """Names for a person: a table may have hundreds of columns."""
    first = list(names)
    return ", ".join(first[:20]) + (f" and {len(first) - 20} more" if len(first) > 20 else "")


@dataclass(frozen=True)
class Piece:
    """The rows of one output file.

    Args:
        name: name of the output file, without its suffix.
        parts: parts of input files, read one after the other.
        rows: number of rows in them.
    """

    name: str
    parts: tuple[Part, ...]
    rows: int


def pieces(source: AnySource, files: Iterable[Inspected], part_rows: int) -> list[Piece]:
    """The input in pieces of about `part_rows` rows; they depend on nothing else."""
    complete: list[Piece] = []
    held: list[Part] = []
    rows = size = 0
    for file in files:
        for part, count, length in _parts(source, file, part_rows):
            if held and (rows + count > part_rows or size + length > _PART_BYTES):
                complete.append(_piece(held, rows))
                held, rows, size = [], 0, 0
            held.append(part)
            rows, size = rows + count, size + length
    return [*complete, _piece(held, rows)] if held else complete


def _parts(source: AnySource, file: Inspected, part_rows: int) -> Iterable[tuple[Part, int, int]]:
    """Parts of a file, each with its number of rows and its approximate size in bytes."""
    if not file.groups:
        yield Part(source, file), file.rows, file.file.size
        return
    start = rows = 0
    for position, count in enumerate(file.groups):
        last = position == len(file.groups) - 1
        rows += count
        if last or rows + file.groups[position + 1] > part_rows:
            yield Part(source, file, range(start, position + 1)), rows, rows * file.file.size // max(1, file.rows)
            start, rows = position + 1, 0


def _piece(parts: Sequence[Part], rows: int) -> Piece:
    content = [
        [part.file.file.relative, part.file.sha256, *((part.groups.start, part.groups.stop) if part.groups else ())]
        for part in parts
    ]
    return Piece(f"part-{digest_of(content)[:16]}", tuple(parts), rows)


def sample(source: AnySource, files: Sequence[Inspected], fields: Fields) -> list[Row]:
    """Columns that could be kept, of the first rows of some files."""
    sampled: list[Row] = []
    step = max(1, len(files) // _SAMPLED_FILES)
    for file in list(files)[::step][:_SAMPLED_FILES] if source.gives is None else ():
        part = Part(source, file, range(len(file.groups)) if file.groups else None)
        rows: Iterable[Raw] = islice(read(part, fields.columns), _SAMPLED_ROWS)
        sampled += [fields.kept(raw.row) for raw in rows if raw.row is not None]
    return sampled


def kept_types(rows: Sequence[Row], requested: tuple[str, ...] | None) -> "dict[str, pa.DataType]":
    """The columns to keep, with their Arrow types inferred from some rows.

    Raises:
        DataError: a requested column does not exist.
    """
    import pyarrow as pa

    present = list(dict.fromkeys(name for row in rows for name in row))
    if absent := [name for name in requested or () if name not in present]:
        raise DataError(
            f"keep: the input has no column {', '.join(absent)}; it has: {', '.join(present) or 'none'}.",
            code="column_missing",
        )
    types = {}
    for name in present if requested is None else requested:
        values = [row.get(name) for row in rows]
        try:
            kind = pa.array(values).type
        except (
            pa.ArrowInvalid,
            pa.ArrowTypeError,
        ):  # several types, such as identifiers of which some are numbers
            kind = pa.string()
            values = [None if value is None else str(value) for value in values]
        if pa.types.is_timestamp(kind) and any(hasattr(value, "nanosecond") for value in values):
            kind = pa.timestamp("ns", kind.tz)  # pandas' type, whose nanoseconds Arrow would cut
        if requested is not None or _is_small(kind, values):
            types[name] = pa.string() if pa.types.is_null(kind) else kind
    return types


def _is_small(kind: "pa.DataType", values: list[Any]) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return False
    return not pa.types.is_string(kind) or max(map(len, filter(None, values)), default=0) <= _SHORT
