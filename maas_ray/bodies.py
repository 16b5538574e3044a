"""The base of what clients send: strict, and no dearer to refuse than to read.

pydantic makes a record of everything that is wrong. A body of megabytes has room for millions of mistakes, and their
records take gigabytes; so the first wrong item of a list ends it, and an object with more fields than any has, or a
dict of more keys, is refused whole.
"""

import base64
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_MOST_FIELDS = 100
_MOST_KEYS = 10_000


def _bound(schema: Any) -> None:
    """Make every list in a core schema stop at its first error, and every dict be of a bounded size first."""
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
            bounded = core_schema.no_info_before_validator_function(_of_few_keys, dict(schema))
            schema.clear()
            schema.update(bounded)


def _of_few_keys(data: Any) -> Any:
    if isinstance(data, dict) and len(data) > _MOST_KEYS:
        raise PydanticCustomError("too_many_keys", "No object here has so many keys")
    return data


class Body(BaseModel):
    """A request's body, or an object in one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _bound(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _of_few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > max(_MOST_FIELDS, len(cls.model_fields)):
            raise PydanticCustomError("too_many_fields", "No object has so many fields")
        return data


def decoded_base64(text: str) -> bytes:
    """A file's bytes, from base64 that may be broken into lines, or be a `data:` URL. The same in files of rows.

    Raises:
        ValueError: it is no base64; says why.
    """
    text = "".join(text.split())
    if text.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise ValueError("it is a data: URL, but does not begin with data:TYPE;base64,")
    return base64.b64decode(text, validate=True)
