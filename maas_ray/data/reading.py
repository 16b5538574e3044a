"""From files to raw rows: what a file holds, and its rows one by one, broken ones with their error.

A file is looked at twice. `inspect` reads it once for its digest, the number of its rows and its columns,
before any work starts; `read` gives its rows. Neither knows what a task makes of a row.
"""

from collections.abc import Iterator
from dataclasses import replace

from maas_ray.data.dataset import SPLITS
from maas_ray.data.sources import AnySource
from maas_ray.data.sources.base import EXCERPT_BYTES, InputFile, Inspected, Part, Raw
from maas_ray.data.sources.files import stamp
from maas_ray.errors import DataError, MaasError


def inspect(source: AnySource, file: InputFile, columns: tuple[str, ...], before: Inspected | None = None) -> Inspected:
    """Read a file once, for what has to be known before any work starts; what was found `before` holds by its stamp."""
    try:
        found = Inspected(file, stamp=source.stamp(file))
        if before is not None and before.stamp == found.stamp:
            return before
        return source.inspect(found, source.mapping(columns))
    except (OSError, MaasError) as error:
        return Inspected(file, problem=f"{file.uri} cannot be read: {str(error).removeprefix(file.uri).lstrip(': ')}")


def read(part: Part, columns: tuple[str, ...]) -> Iterator[Raw]:
    """The rows of a part, by the task's column names. What cannot be read comes as a row with an error.

    Raises:
        DataError: the file is not the one that was inspected any more.
    """
    source, found = part.source, part.file
    split = None if source.split is None else SPLITS.index(source.split)
    for raw in source.rows(found, part.groups, source.mapping(columns)):
        yield raw if split is None else replace(raw, split=split)
    if source.stamp(found.file) != found.stamp:
        raise DataError(f"{found.file.uri} changed while it was read; nothing was committed. Run again.")


__all__ = ["EXCERPT_BYTES", "InputFile", "Inspected", "Part", "Raw", "inspect", "read", "stamp"]
