"""Sources as `prepare` reads them, without a cluster."""

from typing import Any

from pydantic import TypeAdapter

from maas_ray.data.damage import weighed
from maas_ray.data.reading import Part, Raw, inspect, lacking_columns, read
from maas_ray.data.sources import AnySource, list_files


def source(**document: Any) -> AnySource:
    """A source as a spec would describe it."""
    found: AnySource = TypeAdapter(AnySource).validate_python(document)
    return found


def problem_of(of: AnySource, columns: tuple[str, ...]) -> str:
    """The problem for which `prepare` would refuse a source. Empty: it would not."""
    found = [inspect(of, file, columns) for file in list_files(of)]
    return next((file.problem for file in found if file.problem), "") or lacking_columns(of, found, columns)


def raws(of: AnySource, columns: tuple[str, ...]) -> list[Raw]:
    """The rows of a source, and the errors in the place of rows; they stand for as many rows as were counted."""
    assert not problem_of(of, columns)
    found = weighed([inspect(of, file, columns) for file in list_files(of)])
    rows = [list(read(Part(of, file, range(len(file.groups)) if file.groups else None), columns)) for file in found]
    assert [sum(raw.rows for raw in some) for some in rows] == [file.rows for file in found]
    return [raw for some in rows for raw in some]


def rows_of(of: AnySource, columns: tuple[str, ...]) -> list[Any]:
    """The rows of a source, or the error in the place of one."""
    return [raw.error or raw.row for raw in raws(of, columns)]
