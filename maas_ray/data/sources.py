"""What a user writes under `sources:`, and the files that means. What they hold is `maas_ray.data.reading`'s affair."""

from maas_ray.data.formats import FORMATS, AnySource, formats_for
from maas_ray.data.formats.arrow import ArrowSource
from maas_ray.data.formats.base import FILE_COLUMNS, KEEP_PREFIX, InputFile, Source
from maas_ray.data.formats.csv import CsvSource
from maas_ray.data.formats.folders import AudioFolderSource, ImageFolderSource
from maas_ray.data.formats.jsonl import JsonlSource
from maas_ray.data.formats.parquet import ParquetSource
from maas_ray.data.formats.sql import SqlSource
from maas_ray.data.formats.table import Table
from maas_ray.data.formats.text import TextSource
from maas_ray.data.formats.webdataset import WebDatasetSource

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
    "FILE_COLUMNS",
    "FORMATS",
    "KEEP_PREFIX",
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
