"""Request bodies checked against their models; errors in the words of OpenAI's own API, whichever API was asked.

Knows pydantic's error types, and none of the APIs' fields.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from maas_ray.errors import RequestError

_Body = TypeVar("_Body", bound=BaseModel)

LARGE = 256 * 1024
"""Bytes of a JSON body above which its parsing is worth some care."""
_MAX_NAME = 200  # characters of a field's name that a message repeats
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_TYPES = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("below minimum", ">=", "ge"),
    "greater_than": ("below minimum", ">", "gt"),
    "less_than_equal": ("above maximum", "<=", "le"),
    "less_than": ("above maximum", "<", "lt"),
}
_LENGTHS = {
    "too_short": ("array too short", "an array with minimum length", "min_length"),
    "too_long": ("array too long", "an array with maximum length", "max_length"),
    "string_too_short": ("string too short", "a string with minimum length", "min_length"),
    "string_too_long": ("string too long", "a string with maximum length", "max_length"),
}


def parse_json(body: bytes) -> Any:
    """The JSON document in a body.

    Raises:
        RequestError: the body is not valid JSON; gives the position.
    """
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if _LARGE_NUMBER.search(body) and not _is_finite(document):
        raise RequestError(
            "The body has a number that is larger than the largest double, about 1.8e308. Send a smaller one.",
            code="invalid_json",
        )
    return document


_LARGE_NUMBER = re.compile(rb"[eE]\+?\d{3}|\d{200}")  # whatever is above 1e308 matches, in a string or not


def _is_finite(document: Any) -> bool:
    """False if a number was too large for a float, which pydantic makes infinite."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, float) and not math.isfinite(value):
            return False
    return True


def parse_body(kind: type[_Body], document: Any) -> _Body:
    """A JSON document as a request body.

    Raises:
        RequestError: names the first parameter that is wrong, as OpenAI's own API does.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise request_error(error) from error


def at_most(count: int) -> BeforeValidator:
    """Refuse a longer array before its items are validated."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > count:
            message = "array too long. Expected an array with maximum length {count}, but got one with length {length}"
            raise PydanticCustomError("invalid_value", message, {"count": count, "length": len(value)})
        return value

    return BeforeValidator(check)


def request_error(error: ValidationError, within: str = "") -> RequestError:
    """Pydantic's error as an answer to the client.

    Args:
        error: pydantic's.
        within: the part of the body that was validated, such as `instances[3]`. Empty: all of it.
    """
    details = error.errors(include_url=False, include_input=True)
    # In a union, the branch that got furthest is the one that was meant.
    detail = max(
        details,
        key=lambda detail: (sum(isinstance(part, int) for part in detail["loc"]), not detail["type"].endswith("_type")),
    )
    kind, context = detail["type"], detail.get("ctx", {})
    param = ".".join(part for part in (within, _param(detail["loc"])) if part)
    if "name" in context:
        name = f"{param}.{context['name']}" if param else context["name"]
        return RequestError(detail["msg"].replace(context["name"], name, 1), param=name, code=_CODES.get(kind, kind))
    alternatives = [other["type"] for other in details if _param(other["loc"]) == _param(detail["loc"])]
    code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
    return RequestError(message_of(detail, param, alternatives), param=param or None, code=code)


def message_of(detail: ErrorDetails, param: str, alternatives: Iterable[str] = ()) -> str:
    """The message for a client's developer.

    Args:
        detail: one of pydantic's errors.
        param: the field, such as `messages[0].content`. Empty: the body itself.
        alternatives: pydantic's error types for the other types that the field may have.
    """
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    field = f"'{param}'" if param else "the body"
    if kind == "missing":
        return f"Missing required parameter: {field}."
    if kind == "extra_forbidden":
        return f"Unknown parameter: {field}."
    if kind in _TYPES:
        expected = dict.fromkeys(_TYPES[one] for one in (kind, *alternatives) if one in _TYPES)
        return f"Invalid type for {field}: expected {' or '.join(expected)}, but got {_type(value)} instead."
    if kind == "literal_error":
        return f"Invalid value for {field}: {_shown(value)}. Supported values are: {context['expected']}."
    if kind in _BOUNDS:
        side, sign, bound = _BOUNDS[kind]
        number = "integer" if isinstance(value, int) else "number"
        limit = str(context[bound]).removesuffix(".0")
        return (
            f"Invalid {field}: {number} {side} value. Expected a value {sign} {limit}, but got {_shown(value)} instead."
        )
    if kind in _LENGTHS:
        problem, expected_length, bound = _LENGTHS[kind]
        limit = f"{expected_length} {context[bound]}"
        return f"Invalid {field}: {problem}. Expected {limit}, but got one with length {len(value)} instead."
    return f"Invalid {field}: {detail['msg'][0].lower() + detail['msg'][1:]} (got {_shown(value)})."


def _param(location: tuple[int | str, ...]) -> str:
    """A field such as `messages[0].content`. Pydantic also puts the names of union branches into locations."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text:  # a table's column may have any name, also a long one
            text = part if len(part) <= _MAX_NAME else part[:_MAX_NAME] + "…"
        elif part.isidentifier() and part not in ("str", "int", "float"):
            text += f".{part}"
    return text


def _type(value: Any) -> str:
    """The JSON type of a value."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list) and len(value) > 40:
        return f"{_type(value)} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
