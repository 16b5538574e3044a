"""From files to raw rows: the inspection of a file, and its rows one by one, with an error for each broken row.

A file is read twice. `inspect` reads it once for its digest, its number of rows and its columns, before any work
starts; `read` gives its rows. Neither knows what a task does with a row.
"""

from collections.abc import Iterator
from dataclasses import replace

from maas_ray.data.names import SPLITS
from maas_ray.data.sources import AnySource
from maas_ray.data.sources.base import EXCERPT_BYTES, InputFile, Inspected, Part, Raw
from maas_ray.data.sources.files import stamp
from maas_ray.data.sources.table import missing
from maas_ray.errors import DataError, MaasError, Problem


def inspect(source: AnySource, file: InputFile, columns: tuple[str, ...], before: Inspected | None = None) -> Inspected:
    """Read a file once for everything that must be known before work starts.

    Args:
        source: the source of the file.
        file: the file.
        columns: the task's columns that are needed.
        before: an earlier inspection. It is returned if the file's stamp is unchanged.
    """
    try:
        inspected = Inspected(file, stamp=source.stamp(file))
        if before is not None and before.stamp == inspected.stamp:
            return replace(before, file=file)  # a recorded URI has no passwords
        return source.inspect(inspected, source.mapping(columns))
    except (OSError, MaasError) as error:
        text = f"{file.uri} cannot be read: {str(error).removeprefix(file.uri).lstrip(': ')}"
        return Inspected(file, problem=Problem(text, getattr(error, "code", "storage_failed")))


def read(part: Part, columns: tuple[str, ...]) -> Iterator[Raw]:
    """The rows of a part, by the task's column names. An unreadable row comes with an error instead of values.

    Raises:
        DataError: the file has changed since it was inspected.
    """
    source, file = part.source, part.file
    split = None if source.split is None else SPLITS.index(source.split)
    for raw in source.rows(file, part.groups, source.mapping(columns)):
        counted = replace(raw, rows=file.lost) if raw.rest else raw
        yield counted if split is None else replace(counted, split=split)
    if source.stamp(file.file) != file.stamp:
        raise DataError(
            f"{file.file.uri} changed while it was read; nothing was committed. Run again.", code="input_changed"
        )


def lacking_columns(source: AnySource, files: list[Inspected], columns: tuple[str, ...]) -> str:
    """The problem of a source none of whose files has some column. Empty: each column is in some file.

    Rows of JSON leave nulls out, so that one file alone says little about the columns.
    """
    judged = [file for file in files if file.columns or not file.lacking]
    lacking = set[str]().union(*(file.lacking for file in judged)).intersection(*(file.lacking for file in judged))
    if not lacking:
        return ""
    existing = dict.fromkeys(column for file in judged for column in file.columns)
    where = judged[0].file.uri if len(judged) == 1 else source.location
    mapping = {name: column for name, column in source.mapping(columns).items() if column in lacking}
    return missing(where, mapping, existing)


__all__ = ["EXCERPT_BYTES", "InputFile", "Inspected", "Part", "Raw", "inspect", "lacking_columns", "read", "stamp"]
