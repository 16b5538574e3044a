"""The JSON schema of an answer that must call tools."""

from collections.abc import Collection, Sequence
from typing import Any

from maas_ray.serve.text import json_schema

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_VALUES = ("const", "enum", "default", "examples")
_SCHEMAS = ("properties", "$defs", "definitions")


def call_schema(
    tools: Sequence[dict[str, Any]],
    names: Collection[str],
    strict: Collection[str] = (),
    *,
    several: bool,
    answer: dict[str, Any] | None = None,
) -> str:
    """The schema of a JSON array of calls, each `{"name": …, "parameters": {…}}`, as text.

    Args:
        tools: all functions of the request, in the form of `tasks.text.messages`.
        names: those that the answer may call.
        strict: those whose arguments must follow every keyword of their schema.
        several: the answer may have more than one call.
        answer: the schema of an answer without calls. None: the answer must have calls.

    Raises:
        RequestError: the engine cannot enforce the parameters of a strict function, or the other schema.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        if function["name"] in names:
            parameters = function.get("parameters") or _NO_PARAMETERS
            param = f"tools[{index}].function.parameters"
            if function["name"] not in strict:
                parameters = json_schema.enforceable(parameters, param=param)
            json_schema.check(parameters, param=param)
            properties = {"name": {"const": function["name"]}, "parameters": _define(parameters, index, definitions)}
            calls.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
    schema |= {} if several else {"maxItems": 1}
    if answer is not None:
        json_schema.check(answer)
        schema = {"anyOf": [_define(answer, "answer", definitions), schema]}
    return json_schema.check({**schema, "$defs": definitions}, param="tools")


def _define(schema: dict[str, Any], key: int | str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Add a schema and its definitions to those of another document; returns a reference to it."""
    moved = _moved(schema, key)
    for group in ("$defs", "definitions"):
        definitions.update({f"{key}.{name}": inner for name, inner in moved.pop(group, {}).items()})
    definitions[str(key)] = moved
    return {"$ref": f"#/$defs/{key}"}


def _moved(schema: Any, key: int | str) -> Any:
    """A schema whose references lead to the definitions of another document."""
    if isinstance(schema, list):
        return [_moved(inner, key) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for word, inner in schema.items():
        if word in _SCHEMAS:
            moved[word] = {name: _moved(subschema, key) for name, subschema in inner.items()}
        else:
            moved[word] = inner if word in _VALUES else _moved(inner, key)
    if "$ref" in moved:
        name = moved["$ref"].removeprefix("#").removeprefix("/$defs/").removeprefix("/definitions/")
        moved["$ref"] = f"#/$defs/{key}.{name}" if name else f"#/$defs/{key}"
    return moved
