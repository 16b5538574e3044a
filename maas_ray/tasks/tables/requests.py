"""The request row of a table's model: one field for each of its columns."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, create_model
from pydantic_core import PydanticKnownError

from maas_ray.tasks.rows import RequestRow
from maas_ray.tasks.tables.cells import category, cell, number
from maas_ray.tasks.tables.features import TableFeatures


class TableRow(RequestRow):
    """A row of a table: a number, a text or null for each of the model's columns; one that is left out is missing."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | bool | None]


def _as_category(value: Any) -> Any:
    try:
        return category(cell(value)) or None
    except (ValueError, OverflowError):
        return value


def _as_number(value: Any) -> Any:
    try:
        found = number(cell(value))
    except ValueError:
        if isinstance(value, str):  # which pydantic may read otherwise
            raise PydanticKnownError("float_type") from None
        return value
    return None if math.isnan(found) else found


_Number = Annotated[float | None, Field(allow_inf_nan=False), BeforeValidator(_as_number)]
_Category = Annotated[str | None, BeforeValidator(_as_category)]


def attribute(column: str) -> str:
    """A column's name as a field of a request: its own, unless that has a meaning in Python's classes."""
    return f"column:{column}" if column.startswith("_") or hasattr(RequestRow, column) else column


def request_type(features: TableFeatures) -> type[RequestRow]:
    """The row that a model of these columns takes."""
    numbers = {column.name for column in features.numbers}
    fields: dict[str, Any] = {
        attribute(name): (_Number if name in numbers else _Category, Field(None, alias=name)) for name in features.order
    }
    found: type[RequestRow] = create_model("TableRow", __base__=RequestRow, **fields)
    return found
