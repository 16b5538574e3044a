"""The version and the directory of this package. Imports nothing of it, so any module may import this one."""

from pathlib import Path

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
"""The directory of the package."""
