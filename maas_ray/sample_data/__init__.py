"""Real data that needs no download, for the specs in `jobs/specs/`: `python -m maas_ray.sample_data`."""

from collections.abc import Callable
from pathlib import Path

from maas_ray.sample_data import code, speech, tables

SAMPLES: dict[str, Callable[[Path], Path]] = {
    "digits": tables.digits,
    "diabetes": tables.diabetes,
    "breast-cancer": tables.breast_cancer,
    "wine": tables.wine,
    "lines": tables.lines,
    "packages": code.packages,
    "python-tokens": code.python_tokens,
    "docstrings": code.docstrings,
    "spoken-digits": speech.spoken_digits,
}
"""Samples by name. Each function writes its data into a directory and returns the path."""
