"""CSV files: `source` is the spec, `dialect` how a file is written, `scan` finds rows, `parse` reads them."""

from maas_ray.data.sources.csv.source import CsvSource

__all__ = ["CsvSource"]
