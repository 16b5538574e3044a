"""The formats that sources come in. A new one is a module here, with a class in it: it is found by itself.

A format's class is what a user writes under `sources:`; it lists what a source means, looks at a piece of it once, and
gives its rows.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from maas_ray.data.sources.arrow import ArrowSource
from maas_ray.data.sources.base import InputFile, Source
from maas_ray.data.sources.csv import CsvSource
from maas_ray.data.sources.folders import AudioFolderSource, ImageFolderSource
from maas_ray.data.sources.jsonl import JsonlSource
from maas_ray.data.sources.parquet import ParquetSource
from maas_ray.data.sources.sql import SqlSource
from maas_ray.data.sources.table import Table
from maas_ray.data.sources.text import TextSource
from maas_ray.data.sources.webdataset import WebDatasetSource


def _found() -> Iterator[type[Source]]:
    for module in pkgutil.iter_modules(__path__):
        for made in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(made, type) and issubclass(made, Source) and not isabstract(made):
                yield made


FORMATS: tuple[type[Source], ...] = tuple(dict.fromkeys(_found()))

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[Union[FORMATS], Field(discriminator="format")]  # noqa: UP007


def formats_for(columns: tuple[str, ...]) -> list[str]:
    """The formats that can give these columns of a task."""
    return [kind.name_of() for kind in FORMATS if kind.gives is None or set(columns) <= set(kind.gives)]


TABLES = tuple(kind for kind in FORMATS if issubclass(kind, Table))
"""Formats of rows with named columns."""


def list_files(source: AnySource) -> list[InputFile]:
    """Every file that a source means, by relative path.

    Raises:
        DataError: there is no such path, or no file matches.
        StorageError: it cannot be read.
    """
    return source.files()


__all__ = [
    "FORMATS",
    "TABLES",
    "AnySource",
    "ArrowSource",
    "AudioFolderSource",
    "CsvSource",
    "ImageFolderSource",
    "InputFile",
    "JsonlSource",
    "ParquetSource",
    "Source",
    "SqlSource",
    "TextSource",
    "WebDatasetSource",
    "formats_for",
    "list_files",
]
