"""The request row of a table's model: one field for each of its columns."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, create_model
from pydantic_core import PydanticKnownError

from maas_ray.tasks.cells import category, cell, number
from maas_ray.tasks.rows import RequestRow, TensorSpec
from maas_ray.tasks.tables.features import TableFeatures


class TableRow(RequestRow):
    """A row of a table: a number, a text or null for each of the model's columns. An absent column counts as null."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | bool | None]

    @classmethod
    def sample(cls, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
        """A zero or an empty text for each column."""
        return {tensor.name: "" if tensor.datatype == "BYTES" else 0 for tensor in inputs}


def _as_category(value: Any) -> Any:
    try:
        return category(cell(value)) or None
    except (ValueError, OverflowError):
        return value


def _as_number(value: Any) -> Any:
    try:
        result = number(cell(value))
    except ValueError:
        if isinstance(value, str):  # pydantic would accept other spellings
            raise PydanticKnownError("float_type") from None
        return value
    return None if math.isnan(result) else result


_Number = Annotated[float | None, Field(allow_inf_nan=False), BeforeValidator(_as_number)]
_Category = Annotated[str | None, BeforeValidator(_as_category)]


def attribute(column: str) -> str:
    """The attribute for a column: its own name, unless the name is private or taken by Python's classes."""
    return f"column:{column}" if column.startswith("_") or hasattr(RequestRow, column) else column


def request_type(features: TableFeatures) -> type[RequestRow]:
    """The request row of a model with these columns."""
    numbers = {column.name for column in features.numbers}
    fields: dict[str, Any] = {
        attribute(name): (_Number if name in numbers else _Category, Field(None, alias=name)) for name in features.order
    }
    row: type[RequestRow] = create_model("TableRow", __base__=RequestRow, **fields)
    return row
