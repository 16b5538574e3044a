"""Base model for request bodies: strict, and rejecting a bad body costs no more than parsing a good one.

Pydantic creates a record of each mistake. A body of megabytes can contain millions of mistakes, whose records take
gigabytes. Therefore validation of a list ends at its first wrong item, and an object with too many fields or keys is
rejected as a whole.
"""

import base64
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from maas_ray.errors import InvalidError

_MAX_FIELDS = 100
_MAX_KEYS = 10_000


def _bound(schema: Any) -> None:
    """Make every list in a core schema stop at its first error, and every dict check its size first."""
    if isinstance(schema, list | tuple):
        for inner in schema:
            _bound(inner)
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            if key not in ("default", "metadata"):
                _bound(inner)
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        elif schema.get("type") == "dict":
            bounded = core_schema.no_info_before_validator_function(_check_keys, dict(schema))
            schema.clear()
            schema.update(bounded)


def _check_keys(data: Any) -> Any:
    if isinstance(data, dict) and len(data) > _MAX_KEYS:
        raise PydanticCustomError("too_many_keys", "The object has too many keys")
    return data


class Body(BaseModel):
    """A request body, or an object in one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _bound(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > max(_MAX_FIELDS, len(cls.model_fields)):
            raise PydanticCustomError("too_many_fields", "The object has too many fields")
        return data


def decoded_base64(text: str) -> bytes:
    """The bytes of a file in base64, which may be broken into lines, or be a `data:` URL.

    Raises:
        ValueError: the text is not base64; gives the reason.
    """
    text = "".join(text.split())
    if text.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise InvalidError("invalid_base64", "a data: URL must begin with data:TYPE;base64,")
    return base64.b64decode(text, validate=True)
