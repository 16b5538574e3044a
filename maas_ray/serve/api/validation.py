"""What is wrong with a field of a request, in the words of OpenAI's own API, whichever API was asked.

Knows pydantic's kinds of errors, and no API's fields.
"""

import json
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

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


def wording(detail: ErrorDetails, param: str, alternatives: Iterable[str] = ()) -> str:
    """What a client's developer is told of an error.

    Args:
        detail: pydantic's error.
        param: the field, such as `messages[0].content`. Empty: the body itself.
        alternatives: pydantic's kinds of error for other types that the field may have.
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
        return f"Invalid value for {field}: {_seen(value)}. Supported values are: {context['expected']}."
    if kind in _BOUNDS:
        side, sign, bound = _BOUNDS[kind]
        number = "integer" if isinstance(value, int) else "number"
        limit = str(context[bound]).removesuffix(".0")
        return (
            f"Invalid {field}: {number} {side} value. Expected a value {sign} {limit}, but got {_seen(value)} instead."
        )
    if kind in _LENGTHS:
        problem, expected_length, bound = _LENGTHS[kind]
        limit = f"{expected_length} {context[bound]}"
        return f"Invalid {field}: {problem}. Expected {limit}, but got one with length {len(value)} instead."
    return f"Invalid {field}: {detail['msg'][0].lower() + detail['msg'][1:]} (found {_seen(value)})."


def _type(value: Any) -> str:
    """What a JSON value is."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def _seen(value: Any) -> str:
    if isinstance(value, dict | list) and len(value) > 40:
        return f"{_type(value)} of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
