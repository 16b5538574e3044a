"""The formats of sources: a module for each, found by itself. `base` has the class that a new format derives from.

A format's class is one entry under `sources:`. It lists the files of a source, inspects each once, and gives its rows.
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


def _formats() -> Iterator[type[Source]]:
    for module in pkgutil.iter_modules(__path__):
        for attribute in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(attribute, type) and issubclass(attribute, Source) and not isabstract(attribute):
                yield attribute


FORMATS: tuple[type[Source], ...] = tuple(dict.fromkeys(_formats()))
"""All formats."""

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[Union[FORMATS], Field(discriminator="format")]  # noqa: UP007


def formats_for(columns: tuple[str, ...]) -> list[str]:
    """The formats that can have these columns of a task."""
    return [kind.name_of() for kind in FORMATS if kind.gives is None or set(columns) <= set(kind.gives)]


TABLES = tuple(kind for kind in FORMATS if issubclass(kind, Table))
"""Formats of rows with named columns."""


def list_files(source: AnySource) -> list[InputFile]:
    """Every file of a source, by relative path.

    Raises:
        DataError: the path does not exist, or no file matches.
        StorageError: the storage cannot be read.
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
