"""CSV."""

from maas_ray.data.sources.csv.source import CsvSource

__all__ = ["CsvSource"]
