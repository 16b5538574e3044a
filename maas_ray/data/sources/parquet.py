"""`format: parquet`: typed columns in row groups."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from maas_ray import storage
from maas_ray.data.sources.base import Inspected, Raw
from maas_ray.data.sources.compressed import opened
from maas_ray.data.sources.files import Files, digest_of
from maas_ray.data.sources.ipc import first_line
from maas_ray.data.sources.table import Table, missing, typed
from maas_ray.data.sources.typed_columns import TypedColumns, metadata_of
from maas_ray.errors import Problem, StorageError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 256
# INT96, in which Spark writes times by default, would be read in nanoseconds: 9999-12-31 would become 1816-03-29.
_OPTIONS: dict[str, Any] = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}
# Arrow has no such types. It reads their bytes, which could pass for text of control characters.
_OPAQUE = {"INTERVAL": "intervals", "BSON": "BSON documents", "GEOMETRY": "geometries", "GEOGRAPHY": "geographies"}


class ParquetSource(Table, Files):
    """`{format: parquet, path: notes.parquet, text: body}`"""

    format: Literal["parquet"] = "parquet"
    """Name of the format."""
    usual: ClassVar[tuple[str, ...]] = ("*.parquet",)

    def look(self, inspected: Inspected, mapping: dict[str, str]) -> Inspected:
        import pyarrow as pa
        import pyarrow.parquet as pq

        inspected = replace(inspected, sha256=digest_of(inspected.file.uri))
        try:
            with opened(inspected.file.uri) as handle:
                parquet = pq.ParquetFile(handle)
                groups = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
                names = parquet.schema_arrow.names
                problem = missing(inspected.file.uri, mapping, names) or _opaque(inspected.file.uri, parquet, mapping)
        except StorageError:
            raise
        except (OSError, pa.ArrowException) as error:
            damage = f"not readable Parquet: {first_line(error)}"
            return replace(inspected, damage=damage, unread=inspected.file.size)
        return replace(
            inspected, groups=groups, rows=sum(groups), problem=problem, columns=tuple(names) if problem else ()
        )

    def refers(self, inspected: Inspected, named: dict[str, str]) -> bool:
        if not inspected.groups or not super().refers(inspected, named):
            return False
        import pyarrow as pa
        import pyarrow.parquet as pq

        with storage.open_file(inspected.file.uri) as handle:
            schema = pq.read_schema(handle)
        kinds = [schema.field(column).type for column in named.values()]
        return not all(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)

    def records(self, inspected: Inspected, groups: range | None, mapping: dict[str, str]) -> Iterator[Raw]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        uri = inspected.file.uri
        position = sum(inspected.groups[: groups.start]) if groups else 0
        with opened(uri) as handle:
            try:
                parquet = pq.ParquetFile(handle, **_OPTIONS)
                columns = TypedColumns(parquet.schema_arrow, mapping)
            except StorageError:
                raise
            except (OSError, pa.ArrowException) as error:
                yield Raw(uri, 0, error=f"not readable Parquet: {first_line(error)}", rest=True)
                return
            for group in groups or ():
                end = position + inspected.groups[group]
                try:
                    for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns.names):
                        notes = columns.notes(batch.num_rows)
                        for values in columns.rows(batch):
                            yield typed(uri, position, values, mapping, notes)
                            position, notes = position + 1, {}
                except StorageError:
                    raise
                except (OSError, ValueError, pa.ArrowException) as error:
                    message = f"row group {group} is not readable: {first_line(error)}"
                    yield Raw(uri, position, error=message, rows=end - position)
                    position = end


def _opaque(where: str, parquet: "ParquetFile", mapping: dict[str, str]) -> str:
    """The problem of a file with a column that Arrow reads as the bytes of its encoding. Empty: it has none."""
    schema = parquet.schema_arrow
    leaves = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    # GeoParquet has no logical type, and describes its columns in the file's metadata.
    geometries = metadata_of(schema, b"geo").get("columns") or ()
    for name in TypedColumns(schema, mapping).names:
        kinds = {"GEOMETRY"} if name in geometries else set()
        for leaf in leaves:
            if leaf.path == name or leaf.path.startswith(f"{name}."):
                kinds |= {leaf.logical_type.type, leaf.converted_type} & _OPAQUE.keys()
        for kind in kinds:
            return Problem(
                f"{where}: column {name!r} has {_OPAQUE[kind]}, which cannot be read. Write it as text or numbers, "
                f"such as CAST({name} AS VARCHAR) in SQL, or exclude it.",
                code="unreadable_type",
            )
    return ""
