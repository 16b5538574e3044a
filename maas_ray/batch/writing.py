"""Answers to Parquet: the columns of an output row, and the two files of a piece.

The output holds nothing but answers, so that it is a data set for any reader: some skip other files (pandas, pyarrow),
some do not, hidden or not (Polars, `datasets`). Everything about the prediction lies beside it, see `about`.
"""

import hashlib
import io
import json
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from maas_ray import storage
from maas_ray.errors import InvalidError, NotFoundError
from maas_ray.storage import FileEntry
from maas_ray.tasks import AnswerRow

if TYPE_CHECKING:
    import pyarrow as pa

QUARANTINE_DIRECTORY = "quarantine"
"""Directory of quarantined rows, below `about`."""
_GROUP_ROWS, _GROUP_BYTES = 10_000, 32 << 20
"""Size of a Parquet row group. A group for each batch of a model would make a footer as large as the answers."""
ORIGIN = ("path", "position")
_COUNTS = "maas.counts"
_PLAIN = {str: "string", bool: "bool", int: "int64", float: "float64", bytes: "binary"}


def arrow_type(annotation: Any) -> "pa.DataType":
    """The Arrow type of an answer's field. A value without an Arrow type is written as JSON.

    A dict becomes a list of keys and values, because not every reader knows Arrow's maps.
    """
    import pyarrow as pa

    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return pa.type_for_alias(_PLAIN[annotation])
    if origin in (Union, types.UnionType):
        held = [argument for argument in arguments if argument is not type(None)]
        return arrow_type(held[0]) if len(held) == 1 else pa.string()
    if origin in (list, tuple) and arguments:
        return pa.list_(arrow_type(arguments[0]))
    if origin is dict:
        return pa.list_(pa.struct({"key": arrow_type(arguments[0]), "value": arrow_type(arguments[1])}))
    if origin is Literal and all(isinstance(argument, str) for argument in arguments):
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return pa.string()


def schema_of(answer: type[AnswerRow], kept: Mapping[str, "pa.DataType"]) -> "pa.Schema":
    """The columns of an output row: its origin, the kept columns, and the answer's fields.

    A kept column with the name of an answer's field is renamed to `input_NAME`.
    """
    import pyarrow as pa

    answers = {name: arrow_type(field.annotation) for name, field in answer.model_fields.items()}
    columns = dict(zip(ORIGIN, (pa.string(), pa.int64()), strict=True))
    names = output_names(kept, answers)
    columns |= {names[name]: kind for name, kind in kept.items()}
    return pa.schema(list((columns | answers).items()))


def output_names(kept: Iterable[str], answer: Iterable[str]) -> dict[str, str]:
    """Names of input columns in the output: `input_` is put before a name until the name is free."""
    taken = {*ORIGIN, *answer}
    names = {name: name for name in kept if name not in taken}
    taken |= names.keys()
    for name in kept:
        if name not in names:
            free = name
            while free in taken:
                free = f"input_{free}"
            names[name] = free
            taken.add(free)
    return names


def fitted(value: Any, kind: "pa.DataType") -> Any:
    """A value converted for a column of a type.

    Raises:
        InvalidError: it is of another type, or conversion would change it.
    """
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    try:
        converted = pa.scalar(value, kind).as_py()
        if _is_same(converted, value):
            return converted
        problem = None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        problem = error
    raise InvalidError("type_differs", f"holds {str(value)[:80]!r}, but other rows hold {kind}") from problem


def _is_same(converted: Any, value: Any) -> bool:
    """True if Arrow kept the value. It cuts 2.75 to 2 for integers, and omits fields that a struct does not have."""
    if isinstance(value, dict):
        return isinstance(converted, dict) and all(_is_same(converted.get(key), item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return len(converted) == len(value) and all(map(_is_same, converted, value))
    return bool(converted == value or str(converted) == str(value) == "nan")


def answer_values(answer: AnswerRow, schema: "pa.Schema") -> dict[str, Any]:
    """An answer as a row of the output."""
    return {name: _answer_value(value, schema.field(name).type) for name, value in answer.model_dump().items()}


def _answer_value(value: Any, kind: "pa.DataType") -> Any:
    import pyarrow as pa

    if pa.types.is_string(kind):
        return fitted(value, kind)
    if pa.types.is_list(kind) and isinstance(value, dict):
        value = [{"key": key, "value": item} for key, item in value.items()]
    if pa.types.is_list(kind) and pa.types.is_nested(kind.value_type) and value is not None:
        return [_answer_value(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {field.name: _answer_value(value.get(field.name), field.type) for field in kind}
    return value


def quarantine_schema() -> "pa.Schema":
    """The columns of quarantined rows."""
    import pyarrow as pa

    kinds = {"path": "string", "position": "int64", "rows": "int64", "error": "string", "excerpt": "binary"}
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])


class Output:
    """The two files of a piece, written to a local directory and uploaded when all its rows are written.

    Args:
        uri: the output directory.
        name: the piece's name.
        schema: the columns of its answers.
    """

    def __init__(self, uri: str, name: str, schema: "pa.Schema") -> None:
        import pyarrow.parquet as pq

        self._uri, self._name, self._schema = uri, name, schema
        self._scratch = TemporaryDirectory(prefix="maas-predict-")
        answers, broken = paths_of(name)
        self._local = {path: Path(self._scratch.name) / path.replace("/", "-") for path in (answers, broken)}
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
        self._answers = pq.ParquetWriter(self._local[answers], schema, **options)
        self._broken = pq.ParquetWriter(self._local[broken], quarantine_schema(), **options)
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0
        self.rows = self.quarantined = 0
        self.errors: Counter[str] = Counter()
        self.nulled: Counter[str] = Counter()
        """Number of values written as null because their type did not fit, by column."""

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._broken.close()
        self._scratch.cleanup()

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write answers."""
        import pyarrow as pa

        if rows:
            self._held.append(pa.Table.from_pylist(rows, self._schema))
            self.rows += len(rows)
            self._held_rows += len(rows)
            self._held_bytes += self._held[-1].nbytes
            if self._held_rows >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        """Write the answers that are held as a row group."""
        import pyarrow as pa

        if self._held:
            self._answers.write_table(pa.concat_tables(self._held))
            self._held, self._held_rows, self._held_bytes = [], 0, 0

    def quarantine(self, rows: list[dict[str, Any]]) -> None:
        """Quarantine rows that cannot be answered."""
        import pyarrow as pa

        if rows:
            self._broken.write_table(pa.Table.from_pylist(rows, quarantine_schema()))
            self.quarantined += sum(row["rows"] for row in rows)
            for row in rows:
                self.errors[row["error"]] += row["rows"]

    def counts(self) -> dict[str, Any]:
        """Counts of what has been written, with the commonest errors."""
        errors = dict(self.errors.most_common(3))
        return {"rows": self.rows, "quarantined": self.quarantined, "errors": errors, "nulled": dict(self.nulled)}

    def commit(self) -> list[FileEntry]:
        """Upload both files, that of the answers last: if it exists, both are whole."""
        self._flush()
        self._answers.add_key_value_metadata({_COUNTS: json.dumps(self.counts())})
        self._answers.close()
        self._broken.close()
        answers, broken = self._local
        entries = []
        if self.quarantined:
            uploaded = storage.upload(self._local[broken], storage.join(about(self._uri), broken))
            entries.append(FileEntry(broken, *uploaded))
        return [*entries, FileEntry(answers, *storage.upload(self._local[answers], storage.join(self._uri, answers)))]


def about(uri: str) -> str:
    """The directory beside an output that holds its identity, its manifest and its quarantined rows."""
    return f"{uri}.prediction"


def paths_of(name: str) -> tuple[str, str]:
    """Paths of a piece's answers inside the output, and of its quarantined rows inside `about`."""
    return f"{name}.parquet", f"{QUARANTINE_DIRECTORY}/{name}.parquet"


def finished(uri: str, name: str) -> tuple[list[FileEntry], dict[str, Any]] | None:
    """The files of a finished piece, and its counts. None: it is not finished, or a file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    answers, broken = paths_of(name)
    try:
        entry, content = _entry(uri, answers)
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        counts: dict[str, Any] = json.loads(file.metadata.metadata[_COUNTS.encode()])
        if sum(len(batch) for batch in file.iter_batches()) != counts["rows"]:
            return None
        entries = [entry]
        if counts["quarantined"]:
            entry, content = _entry(about(uri), broken)
            pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read()
            entries.append(entry)
    except (NotFoundError, OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return entries, counts


def _entry(uri: str, path: str) -> tuple[FileEntry, bytes]:
    content = storage.read_bytes(storage.join(uri, path))
    return FileEntry(path, len(content), hashlib.sha256(content).hexdigest()), content
