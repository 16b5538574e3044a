"""Private names of Ray Data."""

from typing import Any


def range_datasource(rows: int) -> Any:
    """A data source of the integers below `rows`, for `ray.data.read_datasource`.

    `ray.data.range` reads it with tasks that reserve a CPU each.
    """
    from ray.data._internal.datasource.range_datasource import RangeDatasource

    return RangeDatasource(n=rows, block_format="arrow", column_name="id")
