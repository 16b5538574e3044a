"""What is to be answered: files to parts, each with the name of its output. Pure, but for reading the input.

A part's name is made from the content of its rows' files, so the same input gives the same names, and a part whose
output is there needs not be answered again.
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
from maas_ray.data.names import FILE_COLUMNS
from maas_ray.data.reading import Inspected, Part, Raw, read
from maas_ray.data.sources import FORMATS, AnySource, InputFile, list_files
from maas_ray.errors import DataError
from maas_ray.spec import digest_of
from maas_ray.tasks.rows import REST, Row
from maas_ray.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

_SAMPLED_FILES, _SAMPLED_ROWS = 8, 200
_SHORT = 1000  # characters; a column of longer strings is not kept unless it is asked for
_PART_BYTES = 64 << 20


def guessed(path: str) -> AnySource:
    """The source that a path means by the names of its files.

    Raises:
        DataError: they say nothing, or several things; names what to write.
    """
    kinds = {kind.name_of(): kind for kind in FORMATS if kind.usual}
    name = PurePosixPath(path).name.lower()
    said = [form for form, kind in kinds.items() if form != "text" and any(fnmatch(name, one) for one in kind.usual)]
    if not said and not re.search(r"[*?[]", path):
        said = [form for form in kinds if form != "text" and _holds(form, path)]
    if len(said) > 1:
        raise DataError(f"{path} holds files of several formats, {' and '.join(said)}; say which with `format`.")
    return _source(said[0] if said else "text", path)


def _source(form: str, path: str) -> AnySource:
    found: AnySource = TypeAdapter(AnySource).validate_python({"format": form, "path": path})
    return found


def _holds(form: str, path: str) -> bool:
    """Whether a directory holds files that are usually of a format."""
    source = _source(form, path)
    try:
        names = [PurePosixPath(file.uri).name.lower() for file in list_files(source)]
    except DataError:
        return False
    return any(fnmatch(name, usual) for name in names for usual in source.usual)


def listed(source: AnySource, output: str) -> list[InputFile]:
    """The files of a source, but for those below the output: a glob may well find what was answered before a crash.

    Raises:
        DataError: there are no others.
    """
    fs, inner = storage.filesystem(output)
    below = (inner if storage.is_local(output) else fs.unstrip_protocol(inner)).rstrip("/") + "/"
    files = [file for file in list_files(source) if not file.uri.startswith(below)]
    if not files:
        raise DataError(
            f"{source.location}: all its files lie in the output, {output}; name another directory for that."
        )
    return files


@dataclass(frozen=True)
class Fields:
    """Where the fields of a task's request come from.

    Args:
        required: fields that every row must have.
        optional: fields that a row may have.
        any_of: fields of which every row must have one, where none is required by itself; a request of none of them
            would have an answer, but to nothing.
        names: of all of them, in the files.
        columns: what the reader is asked for.
        given: the reader's name for the only field, of a source that is no table. Empty: it is one.
        strict: whether values have types; those of CSV are all text.
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
        """Those of a task, from a source.

        Raises:
            DataError: the source cannot give them, or a parameter is none of them.
        """
        fields = {field.alias or name: field for name, field in task.request.model_fields.items()}
        unknown = [name for name in parameters if name not in fields]
        if unknown:
            has = f"a request has no such field; it has: {', '.join(fields)}"
            raise DataError(f"parameters: {', '.join(unknown)}: {has}.")
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
                f"request to {task.spec.type}; give a table with such columns."
            )
        return cls(required, optional, (), names, (given,), given)

    def request(self, row: Row) -> Row:
        """The fields of a request in a row as it was read.

        Raises:
            ValueError: it has none.
        """
        if self.given:
            value = row[self.given]
            if self.given == "text" and isinstance(value, bytes):
                value = value.decode("utf-8-sig")
            return {self.required[0]: value}
        found = {name: row[name] for name in self.required}
        rest: Row = row[REST]
        if self.any_of and not any(self.names[name] in rest for name in self.any_of):
            raise ValueError(f"has none of the columns {_listed(self.names[name] for name in self.any_of)}")
        places = ((name, self.names[name]) for name in self.optional)
        return found | {name: rest[place] for name, place in places if rest.get(place) is not None}

    def lacking(self, task: Task, rows: Sequence[Row]) -> list[str]:
        """Columns of a table's model that some rows, as `kept` gives them, do not have.

        Raises:
            DataError: they have nothing that a request to the task could be made of.
        """
        there = {name: None for row in rows for name in row}
        if there and self.any_of and not any(self.names[name] in there for name in self.any_of):
            raise DataError(
                f"a request to {task.spec.type} is made of {_listed(self.any_of)}, looked for as "
                f"{_listed(self.names[name] for name in self.any_of)}; the input has none of them, but "
                f"{_listed(there)}. Say with `columns` where they stand."
            )
        may_miss = [tensor.name for tensor in task.inputs if tensor.optional and tensor.name in self.any_of]
        return [self.names[name] for name in may_miss if self.names[name] not in there] if there else []

    def kept(self, row: Row) -> Row:
        """All that could be kept of a row, by the names in the file."""
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
    """What one output file is made of.

    Args:
        name: of the output, without its suffix.
        parts: read one after the other.
        rows: how many they hold.
    """

    name: str
    parts: tuple[Part, ...]
    rows: int


def pieces(source: AnySource, files: Iterable[Inspected], part_rows: int) -> list[Piece]:
    """The input in pieces of about so many rows, which depend on nothing else."""
    made: list[Piece] = []
    held: list[Part] = []
    rows = size = 0
    for file in files:
        for part, count, length in _parts(source, file, part_rows):
            if held and (rows + count > part_rows or size + length > _PART_BYTES):
                made.append(_piece(held, rows))
                held, rows, size = [], 0, 0
            held.append(part)
            rows, size = rows + count, size + length
    return [*made, _piece(held, rows)] if held else made


def _parts(source: AnySource, file: Inspected, part_rows: int) -> Iterable[tuple[Part, int, int]]:
    """Parts of a file, each with its rows and about how many bytes they are."""
    if not file.groups:
        yield Part(source, file), file.rows, file.file.size
        return
    start = rows = 0
    for place, count in enumerate(file.groups):
        last = place == len(file.groups) - 1
        rows += count
        if last or rows + file.groups[place + 1] > part_rows:
            yield Part(source, file, range(start, place + 1)), rows, rows * file.file.size // max(1, file.rows)
            start, rows = place + 1, 0


def _piece(parts: Sequence[Part], rows: int) -> Piece:
    content = [
        [part.file.file.relative, part.file.sha256, *((part.groups.start, part.groups.stop) if part.groups else ())]
        for part in parts
    ]
    return Piece(f"part-{digest_of(content)[:16]}", tuple(parts), rows)


def sample(source: AnySource, files: Sequence[Inspected], fields: Fields) -> list[Row]:
    """What could be kept of the first rows of some files."""
    found: list[Row] = []
    step = max(1, len(files) // _SAMPLED_FILES)
    for file in list(files)[::step][:_SAMPLED_FILES] if source.gives is None else ():
        part = Part(source, file, range(len(file.groups)) if file.groups else None)
        rows: Iterable[Raw] = islice(read(part, fields.columns), _SAMPLED_ROWS)
        found += [fields.kept(raw.row) for raw in rows if raw.row is not None]
    return found


def kept_types(rows: Sequence[Row], asked: tuple[str, ...] | None) -> "dict[str, pa.DataType]":
    """The columns to keep, with their Arrow types, judged by some rows.

    Raises:
        DataError: one that was asked for is not there.
    """
    import pyarrow as pa

    there = list(dict.fromkeys(name for row in rows for name in row))
    if absent := [name for name in asked or () if name not in there]:
        raise DataError(f"keep: the input has no column {', '.join(absent)}; it has: {', '.join(there) or 'none'}.")
    types = {}
    for name in there if asked is None else asked:
        values = [row.get(name) for row in rows]
        try:
            kind = pa.array(values).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several types, such as identifiers some of which are numbers
            kind = pa.string()
            values = [None if value is None else str(value) for value in values]
        if pa.types.is_timestamp(kind) and any(hasattr(value, "nanosecond") for value in values):
            kind = pa.timestamp("ns", kind.tz)  # pandas' own, which Arrow would cut
        if asked is not None or _is_small(kind, values):
            types[name] = pa.string() if pa.types.is_null(kind) else kind
    return types


def _is_small(kind: "pa.DataType", values: list[Any]) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return False
    return not pa.types.is_string(kind) or max(map(len, filter(None, values)), default=0) <= _SHORT
