"""Input files of a batch prediction."""

from maas_ray.data.reading import Inspected, inspect
from maas_ray.data.sources import AnySource, list_files


def inspected(source: AnySource, columns: tuple[str, ...]) -> list[Inspected]:
    return [inspect(source, file, columns) for file in list_files(source)]
