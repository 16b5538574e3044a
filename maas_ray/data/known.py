"""Names of prepared datasets. The module is light, because a shell's completion imports it at every press of a key."""

from maas_ray import storage
from maas_ray.data.names import POINTER


def names(home: str) -> list[str]:
    """Names that have a dataset. A preparation that failed or is not finished leaves a directory, but no pointer.

    Args:
        home: URI of the directory of all datasets.
    """
    every = storage.list_directory(home)
    return [name for name in every if storage.exists(storage.join(home, name, POINTER))]
