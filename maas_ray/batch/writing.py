"""Answers to Parquet: the columns that a row of the output has, and a piece's two files."""

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
from maas_ray.errors import NotFoundError
from maas_ray.storage import FileEntry
from maas_ray.tasks import AnswerRow

if TYPE_CHECKING:
    import pyarrow as pa

QUARANTINE_DIRECTORY = "quarantine"
PLACE = ("path", "position")
_COUNTS = "maas.counts"
_PLAIN = {str: "string", bool: "bool", int: "int64", float: "float64", bytes: "binary"}


def arrow_type(annotation: Any) -> "pa.DataType":
    """The Arrow type of an answer's field. A dict becomes a map; what has no type there is written as JSON."""
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
        return pa.map_(arrow_type(arguments[0]), arrow_type(arguments[1]))
    if origin is Literal and all(isinstance(argument, str) for argument in arguments):
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return pa.string()


def schema_of(answer: type[AnswerRow], kept: Mapping[str, "pa.DataType"]) -> "pa.Schema":
    """A row of the output: where it stood, what was kept of it, and the answer in the task's own words.

    A column that was kept under a name of the answer's is called `input_NAME`.
    """
    import pyarrow as pa

    answers = {name: arrow_type(field.annotation) for name, field in answer.model_fields.items()}
    columns = dict(zip(PLACE, (pa.string(), pa.int64()), strict=True))
    names = output_names(kept, answers)
    columns |= {names[name]: kind for name, kind in kept.items()}
    return pa.schema(list((columns | answers).items()))


def output_names(kept: Iterable[str], answer: Iterable[str]) -> dict[str, str]:
    """What columns of the input are called in the output: `input_` stands before a name until it is free."""
    taken = {*PLACE, *answer}
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
    """A value as a column of a type takes it.

    Raises:
        ValueError: it is of another type, or would be another value there.
    """
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    try:
        found = pa.scalar(value, kind).as_py()
        if _is_same(found, value):
            return found
        problem = None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        problem = error
    raise ValueError(f"holds {str(value)[:80]!r}, where other rows have {kind}") from problem


def _is_same(found: Any, value: Any) -> bool:
    """Whether Arrow kept a value: it cuts 2.75 to 2 among integers, and leaves out fields that a struct has not."""
    if isinstance(value, dict):
        return isinstance(found, dict) and all(_is_same(found.get(name), one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return len(found) == len(value) and all(map(_is_same, found, value))
    return bool(found == value or str(found) == str(value) == "nan")


def answer_values(answer: AnswerRow, schema: "pa.Schema") -> dict[str, Any]:
    """An answer as a row of the output."""
    values = answer.model_dump()
    return {
        name: fitted(value, schema.field(name).type) if str(schema.field(name).type) == "string" else value
        for name, value in values.items()
    }


def quarantine_schema() -> "pa.Schema":
    """What could not be answered."""
    import pyarrow as pa

    kinds = {"path": "string", "position": "int64", "rows": "int64", "error": "string", "excerpt": "binary"}
    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])


class Output:
    """The two files of a piece, written to a local directory and put into place when all its rows are there.

    Args:
        uri: the output directory.
        name: the piece's.
        schema: of its answers.
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
        self.rows = self.quarantined = 0
        self.errors: Counter[str] = Counter()
        self.nulled: Counter[str] = Counter()
        """Values written as null, since they did not fit, by column."""

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._broken.close()
        self._scratch.cleanup()

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Answers."""
        import pyarrow as pa

        if rows:
            self._answers.write_table(pa.Table.from_pylist(rows, self._schema))
            self.rows += len(rows)

    def set_aside(self, rows: list[dict[str, Any]]) -> None:
        """Rows without an answer."""
        import pyarrow as pa

        if rows:
            self._broken.write_table(pa.Table.from_pylist(rows, quarantine_schema()))
            self.quarantined += sum(row["rows"] for row in rows)
            for row in rows:
                self.errors[row["error"]] += row["rows"]

    def counts(self) -> dict[str, Any]:
        """What has been written, as far as it is told; of errors, the commonest."""
        errors = dict(self.errors.most_common(3))
        return {"rows": self.rows, "quarantined": self.quarantined, "errors": errors, "nulled": dict(self.nulled)}

    def commit(self) -> list[FileEntry]:
        """Put the files where they belong, that of the answers last: where it is, both are whole."""
        self._answers.add_key_value_metadata({_COUNTS: json.dumps(self.counts())})
        self._answers.close()
        self._broken.close()
        answers, broken = self._local
        entries = []
        if self.quarantined:
            entries.append(FileEntry(broken, *storage.upload(self._local[broken], storage.join(self._uri, broken))))
        return [*entries, FileEntry(answers, *storage.upload(self._local[answers], storage.join(self._uri, answers)))]


def paths_of(name: str) -> tuple[str, str]:
    """Where a piece's answers lie, and what had none, inside the output."""
    return f"{name}.parquet", f"{QUARANTINE_DIRECTORY}/{name}.parquet"


def found(uri: str, name: str) -> tuple[list[FileEntry], dict[str, Any]] | None:
    """The files of a piece that was finished before, and its counts. None: it was not, or they are damaged."""
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
            entry, content = _entry(uri, broken)
            pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True).read()
            entries.append(entry)
    except (NotFoundError, OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return entries, counts


def _entry(uri: str, path: str) -> tuple[FileEntry, bytes]:
    content = storage.read_bytes(storage.join(uri, path))
    return FileEntry(path, len(content), hashlib.sha256(content).hexdigest()), content
