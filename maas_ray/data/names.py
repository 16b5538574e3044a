"""Names that a dataset's layout, its sources and the specs share. Imports nothing of the package."""

SPLITS = ("train", "validation", "test")
"""The splits of a dataset. A split's number is its index here."""
KEEP_PREFIX = "keep/"
"""Prefix of columns that are read only to be kept, whatever the task makes of them."""
DROP_PREFIX = "drop/"
"""Prefix of columns that are not read, although a task takes all other columns."""
FILE_COLUMNS = ("image", "audio")
"""Columns of tasks that hold whole files."""
POINTER = "current.json"
