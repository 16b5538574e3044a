"""The reference of the HTTP API, from its own OpenAPI document."""

from collections.abc import Iterator, Mapping
from typing import Any

from reference.markup import FIELDS, paragraphs, table, yaml

_FIRST_ERROR = 400


def http_page() -> str:
    """Every path of the OpenAPI document and every schema in it."""
    from maas_ray.serve.api.openapi import document

    api = document([])
    lines = [
        "# The HTTP API",
        "",
        "A running gateway describes itself at `/openapi.json`, with the models it serves.",
        "",
    ]
    lines += [
        "Every path may answer these errors, with an [Error](#error) or an [InferenceError](#inferenceerror):",
        "",
    ]
    lines += table(("status", "meaning"), sorted(_errors(api).items()))
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            lines += [f"## `{method.upper()} {path}`", "", f"{operation['summary']}.", ""]
            lines += table(
                ("parameter", "in", "type", "meaning"),
                (
                    (f"`{one['name']}`", one["in"], _schema_type(one.get("schema", {})), one.get("description", ""))
                    for one in operation.get("parameters", ())
                ),
            )
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                lines += [f"Body, `{media}`: {_schema_type(body.get('schema', {}))}", ""]
                lines += _properties(body.get("schema", {}))
            for status, answer in operation["responses"].items():
                if int(status) < _FIRST_ERROR:
                    bodies = _bodies(answer.get("content", {})) or answer.get("description", "")
                    lines += [f"Answer, {status}: {bodies}", ""]
    lines += ["## Schemas", ""]
    for name, schema in sorted(api["components"]["schemas"].items()):
        lines += [f"### {name} {{ #{name.lower()} }}", "", *paragraphs(schema.get("description", "")), ""]
        lines += _properties(schema)
        if "properties" not in schema:
            lines += [_schema_type(schema), ""]
    return "\n".join(lines) + "\n"


def _errors(api: Mapping[str, Any]) -> dict[str, str]:
    """The meaning of every status that is an error."""
    answers = (
        answer
        for methods in api["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].items()
    )
    return {str(status): answer["description"] for status, answer in answers if int(status) >= _FIRST_ERROR}


def _properties(schema: Mapping[str, Any]) -> list[str]:
    """The fields of an object's schema as a table."""
    required = set(schema.get("required", ()))
    return table(
        FIELDS,
        (
            (
                f"`{field}`",
                _schema_type(found),
                "required" if field in required else f"`{yaml(found['default'])}`" if "default" in found else "",
                ", ".join(_schema_limits(found)),
                " ".join(found.get("description", "").split()),
            )
            for field, found in schema.get("properties", {}).items()
        ),
    )


def _bodies(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{_schema_type(body.get('schema', {}))} as `{media}`" for media, body in content.items())


def _schema_type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_schema_type(one) for one in schema[several]))
    if "allOf" in schema:
        return _schema_type(next((one for one in schema["allOf"] if "$ref" in one), schema["allOf"][0]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " or ".join(f"`{yaml(value)}`" for value in values)
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_schema_type(schema.get('items', {}))}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


_SCHEMA_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "minItems": "items ≥ {}",
    "maxItems": "items ≤ {}",
}


def _schema_limits(schema: Mapping[str, Any]) -> Iterator[str]:
    for branch in (schema, *schema.get("anyOf", ())):
        yield from (words.format(branch[key]) for key, words in _SCHEMA_LIMITS.items() if key in branch)
