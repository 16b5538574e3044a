"""Columns with Arrow types as Python values: what writers say about them in the schema, and values without a match.

pandas lists its index there, which is not a column. Hugging Face's `datasets` names the classes of a `ClassLabel`,
which is stored as a number. A date that Python cannot represent costs its own row, not the rows around it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from maas_ray.data.sources.ipc import first_line
from maas_ray.data.sources.table import columns_of, needed
from maas_ray.errors import InvalidError
from maas_ray.tasks.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa

_LISTS = ("List", "LargeList", "Sequence")
_UNLABELLED = -1  # rows without a label, such as those of a public test split


class TypedColumns:
    """The columns of a typed file that are read.

    Args:
        schema: the schema of the file.
        mapping: the file's columns by the task's names.
        features: Hugging Face's description of the columns. None: from the schema.
    """

    def __init__(self, schema: "pa.Schema", mapping: dict[str, str], features: dict[str, Any] | None = None) -> None:
        named = set(needed(mapping))
        index = _pandas_index(schema) - named
        self.names = [name for name in columns_of(mapping, schema.names) if name not in index]
        self._unread = [name for name in columns_of(mapping, schema.names) if name in index]
        found = features_in(schema)
        described = found if found is not None else features or {}
        self._classes = {name: described[name] for name in self.names if _has_classes(described.get(name))}

    def rows(self, batch: "pa.RecordBatch") -> Iterator[Row | InvalidError]:
        """The rows of a batch, with an error in place of each row that cannot be represented."""
        errors: dict[int, InvalidError] = {}
        positions = {name: batch.schema.names.index(name) for name in self.names}  # a name may occur twice
        columns = {name: self._values(name, batch.column(at), errors) for name, at in positions.items()}
        empty: list[tuple[Any, ...]] = [()] * batch.num_rows
        rows: Iterable[tuple[Any, ...]] = zip(*columns.values(), strict=True) if columns else empty
        for index, values in enumerate(rows):
            yield errors[index] if index in errors else dict(zip(self.names, values, strict=True))

    def notes(self, rows: int) -> dict[str, int]:
        """Columns that a person may miss, each with the number of rows."""
        why = "the index of pandas is not read; to read it, name it in the spec"
        return {f"{name}: {why}": rows for name in self._unread}

    def _values(self, name: str, column: "pa.Array", errors: dict[int, InvalidError]) -> list[Any]:
        import pyarrow as pa

        utc = _in_utc(column.type)
        try:
            column = column if utc == column.type else column.cast(utc)
            values: list[Any] = column.to_pylist()
        except (ArithmeticError, ValueError, LookupError, pa.ArrowException):
            values = [_one(name, index, scalar.as_py, errors) for index, scalar in enumerate(column)]
        if name in self._classes:
            feature = self._classes[name]
            values = [
                _one(name, index, lambda value=value: _named(feature, value), errors)  # type: ignore[misc]
                for index, value in enumerate(values)
            ]
        return values


def _one(name: str, index: int, value: Callable[[], Any], errors: dict[int, InvalidError]) -> Any:
    import pyarrow as pa

    try:
        return value()
    except (ArithmeticError, ValueError, LookupError, pa.ArrowException) as error:
        errors[index] = InvalidError("unreadable_row", f"column {name!r} cannot be read: {first_line(error)}")
        return None


def features_in(schema: "pa.Schema") -> dict[str, Any] | None:
    """Hugging Face's description of the columns. None: there is none."""
    features = metadata_of(schema, b"huggingface").get("info", {}).get("features")
    return features if isinstance(features, dict) else None


def _pandas_index(schema: "pa.Schema") -> set[str]:
    """The columns that pandas made of the index of a frame."""
    index = metadata_of(schema, b"pandas").get("index_columns", [])
    return {name for name in index if isinstance(name, str)}


def metadata_of(schema: "pa.Schema", key: bytes) -> dict[str, Any]:
    """A JSON document in the metadata of a file. Empty: there is none that can be read."""
    try:
        document = json.loads((schema.metadata or {}).get(key, b"{}"))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _in_utc(kind: Any) -> Any:
    """A type with UTC in place of other zones: the same instants, in years that Python has."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    if pa.types.is_list(kind):
        return pa.list_(_in_utc(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_in_utc(kind.value_type))
    return kind


def _has_classes(feature: Any) -> bool:
    if isinstance(feature, list):
        return any(map(_has_classes, feature))
    if not isinstance(feature, dict):
        return False
    if feature.get("_type") == "ClassLabel":
        return isinstance(feature.get("names"), list)
    return any(map(_has_classes, feature.values()))


def _named(feature: Any, value: Any) -> Any:
    """A value with the names of its classes, as `datasets` lays features out: lists, structs, structs of lists.

    Raises:
        ValueError: there is no class of this number.
    """
    if value is None or not _has_classes(feature):
        return value
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        return [_named(inner, item) for item in value]
    if isinstance(value, dict):
        fields = feature["feature"] if feature.get("_type") in _LISTS else feature
        return {name: _named(fields.get(name), item) for name, item in value.items()}
    if not isinstance(value, int) or value == _UNLABELLED:
        return None if value == _UNLABELLED else value
    if not 0 <= value < len(feature["names"]):
        raise InvalidError("unknown_class", f"class {value}, but there are names for {len(feature['names'])}")
    return feature["names"][value]
