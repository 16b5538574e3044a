"""Check of the JSON schemas that answers can be restricted to.

OpenVINO's grammar compiler ignores keywords that it does not know, and a schema that it cannot compile stops the
engine for everybody. Therefore a schema is checked here first: each keyword must be one that the engine was seen to
enforce, and the schema must be small enough to be compiled between two steps. Knows nothing of any engine.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from maas_ray.errors import RequestError

ANY_OBJECT: dict[str, Any] = {"type": "object"}
"""The schema of JSON mode."""

_DEPTH, _SCHEMAS, _ENUM_VALUES, _BYTES, _COUNT = 32, 1000, 500, 50_000, 10_000
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv6", "uuid", "uri")
_NAME = re.compile(r'[^"\\\x00-\x1f\x7f]*')  # other characters break the grammar that is built from the schema
_NOTES = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment"}
_DEFINITIONS = ("$defs", "definitions")
_OF_TYPE: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"format"},  # with a length, the engine lets control characters through, which JSON forbids
    "integer": set(),  # bounds are refused, because answers outside of them were seen
    "number": set(),
    "boolean": set(),
    "null": set(),
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class _RefusedError(Exception):
    """The engine cannot enforce a schema; the message names the place and the reason."""


def check(schema: dict[str, Any], param: str = "response_format") -> str:
    """The schema as text, if the engine can enforce all of it.

    Args:
        schema: the schema.
        param: the field of the request that it came in.

    Raises:
        RequestError: it cannot; names the place and the reason.
    """
    try:
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise _refusal("schema", "it contains a number that is not finite") from None
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refusal("schema", "it contains half of a surrogate pair, which is not a character")
        if len(text.encode()) > _BYTES:
            raise _refusal("schema", f"it is longer than {_BYTES:,} bytes")
        _Check(schema).run()
    except _RefusedError as error:
        message = f"Invalid JSON schema in '{param}': {error}."
        raise RequestError(message, param=param, code="invalid_json_schema") from error
    return text


def _refusal(where: str, problem: str) -> _RefusedError:
    return _RefusedError(f"{where}: {problem}")


def enforceable(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """A schema without the keywords that `check` would refuse. More documents fit it.

    Raises:
        RequestError: it is nested too deeply.
    """
    try:
        reduced: dict[str, Any] = _enforceable(schema)
    except RecursionError as error:
        raise RequestError(f"'{param}' is nested too deeply.", param=param, code="invalid_json_schema") from error
    return reduced


def _enforceable(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for word, inner in schema.items():
        if word in ("properties", *_DEFINITIONS) and isinstance(inner, dict):
            kept[word] = {name: _enforceable(subschema) for name, subschema in inner.items()}
        elif word in ("anyOf", "oneOf") and isinstance(inner, list):
            kept["anyOf"] = [_enforceable(branch) for branch in inner]
        elif word != "format" or inner in _FORMATS:
            kept[word] = _enforceable(inner) if word in ("items", "additionalProperties") else inner
    if "properties" in kept:
        kept.setdefault("type", "object")
    types = kept.get("type", [])
    words = set().union(*(_OF_TYPE.get(kind, set()) for kind in ([types] if isinstance(types, str) else types)))
    alone = next((word for word in ("$ref", "anyOf", "enum", "const") if word in kept), None)
    if alone is not None:
        words = {alone}
    if alone not in ("$ref", "anyOf"):
        words.add("type")
    return {word: inner for word, inner in kept.items() if word in words | _NOTES | set(_DEFINITIONS)}


class _Check:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._schemas: dict[int, tuple[str, dict[str, Any]]] = {}
        self._enum_values = 0

    def run(self) -> None:
        self._schema(self._root, "schema", 1)
        for where, schema in self._schemas.values():
            self._no_circle(where, schema)
        # Schemas that some finite document fits: repeated until a round adds none.
        finite: set[int] = set()
        while more := {
            key
            for key, (_, subschema) in self._schemas.items()
            if key not in finite and self._is_finite(subschema, finite)
        }:
            finite |= more
        if id(self._root) not in finite:
            raise _refusal("schema", "no finite document fits it, because it requires itself without end")

    def _schema(self, schema: Any, where: str, depth: int) -> None:
        if not isinstance(schema, dict):
            raise _refusal(where, "a schema must be an object here")
        if depth > _DEPTH:
            raise _refusal(where, f"it is nested deeper than {_DEPTH}")
        self._schemas[id(schema)] = where, schema
        if len(self._schemas) > _SCHEMAS:
            raise _refusal(where, f"it contains more than {_SCHEMAS} schemas")
        for name in _DEFINITIONS:
            for key, subschema in self._mapping(schema, name, where):
                self._schema(subschema, f"{where}.{name}.{key}", depth + 1)
        keywords = set(schema) - _NOTES - set(_DEFINITIONS)
        if "$ref" in schema:
            self._alone(keywords, "$ref", where)
            self._target(schema, where)
        elif "anyOf" in schema:
            self._alone(keywords, "anyOf", where)
            branches = schema["anyOf"]
            if not isinstance(branches, list) or not branches:
                raise _refusal(f"{where}.anyOf", "it must be an array of schemas")
            for index, branch in enumerate(branches):
                self._schema(branch, f"{where}.anyOf[{index}]", depth + 1)
        else:
            self._typed(schema, keywords, where, depth)

    def _typed(self, schema: dict[str, Any], keywords: set[str], where: str, depth: int) -> None:
        types = self._types(schema, where)
        for name in ("enum", "const"):
            if name in schema:
                self._alone(keywords - {"type"}, name, where)
                self._values(schema, name, types, where)
                return
        known = set().union(*(_OF_TYPE[kind] for kind in types))
        for name in sorted(keywords - {"type"} - known):
            owner = next((kind for kind, names in _OF_TYPE.items() if name in names), None)
            why = "is not supported" if owner is None or types else f"needs type: {owner} beside it"
            beside = f" with type {' or '.join(types)}" if types else ""
            raise _refusal(where, f"the keyword '{name}' {why}{beside}")
        self._object(schema, where, depth)
        if "items" in schema:
            self._schema(schema["items"], f"{where}.items", depth + 1)
        for name in ("minItems", "maxItems"):
            if name in schema and "items" not in schema:
                raise _refusal(where, f"the keyword '{name}' needs items beside it")
            if name in schema and not (type(schema[name]) is int and 0 <= schema[name] <= _COUNT):
                raise _refusal(f"{where}.{name}", f"it must be an integer from 0 to {_COUNT:,}")
        if schema.get("minItems", 0) > schema.get("maxItems", _COUNT):
            raise _refusal(where, "minItems is above maxItems")
        if "format" in schema and schema["format"] not in _FORMATS:
            raise _refusal(f"{where}.format", f"must be one of {', '.join(_FORMATS)}")

    def _types(self, schema: dict[str, Any], where: str) -> list[str]:
        """The types that the schema allows. Empty: any."""
        given = schema.get("type", [])
        types = given if isinstance(given, list) else [given]
        for kind in types:
            if not isinstance(kind, str) or kind not in _OF_TYPE:
                raise _refusal(f"{where}.type", f"{json.dumps(kind)} is not one of {', '.join(_OF_TYPE)}")
        if "type" in schema and not types:
            raise _refusal(f"{where}.type", "must name a type")
        return types

    def _values(self, schema: dict[str, Any], name: str, types: list[str], where: str) -> None:
        values = schema[name] if name == "enum" else [schema[name]]
        if not isinstance(values, list) or not values:
            raise _refusal(f"{where}.{name}", "it must be an array of values")
        self._enum_values += len(values)
        if self._enum_values > _ENUM_VALUES:
            raise _refusal(where, f"the schema has more than {_ENUM_VALUES} enum values in all")
        if types and not all(any(_is(value, kind) for kind in types) for value in values):
            raise _refusal(f"{where}.{name}", "a value is not of the type")

    def _object(self, schema: dict[str, Any], where: str, depth: int) -> None:
        names = []
        for key, subschema in self._mapping(schema, "properties", where):
            if not _NAME.fullmatch(key):
                raise _refusal(f"{where}.properties", f"{json.dumps(key)} has a quote, backslash or control character")
            names.append(key)
            self._schema(subschema, f"{where}.properties.{key}", depth + 1)
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _refusal(f"{where}.required", "it must be an array of names")
        if missing := sorted(set(required) - set(names)):
            raise _refusal(f"{where}.required", f"'{missing[0]}' is not among the properties")
        others = schema.get("additionalProperties", False)
        if not isinstance(others, bool):
            self._schema(others, f"{where}.additionalProperties", depth + 1)

    def _mapping(self, schema: dict[str, Any], name: str, where: str) -> Iterator[tuple[str, Any]]:
        schemas = schema.get(name, {})
        if not isinstance(schemas, dict):
            raise _refusal(f"{where}.{name}", "it must be an object of schemas")
        yield from schemas.items()

    def _alone(self, keywords: set[str], name: str, where: str) -> None:
        if others := sorted(keywords - {name}):
            raise _refusal(where, f"the keyword '{others[0]}' is not supported beside '{name}'")

    def _target(self, schema: dict[str, Any], where: str) -> dict[str, Any]:
        reference = schema["$ref"]
        if reference == "#":
            return self._root
        for name in _DEFINITIONS:
            key = str(reference).removeprefix(f"#/{name}/")
            definitions = self._root.get(name, {})
            if key != reference and not set(key) & set("~%/") and isinstance(definitions, dict) and key in definitions:
                target: dict[str, Any] = definitions[key]
                return target
        raise _refusal(f"{where}.$ref", f"{json.dumps(reference)} is neither '#' nor one of the schema's own $defs")

    def _directly(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        """Schemas that apply to the same character at which this one begins."""
        return [self._target(schema, "schema")] if "$ref" in schema else schema.get("anyOf", [])

    def _no_circle(self, where: str, schema: dict[str, Any]) -> None:
        seen: set[int] = set()
        at = list(self._directly(schema))
        while at:
            other = at.pop()
            if other is schema:
                raise _refusal(where, "it refers to itself before it requires a character")
            if id(other) not in seen:
                seen.add(id(other))
                at += self._directly(other)

    def _is_finite(self, schema: dict[str, Any], finite: set[int]) -> bool:
        if direct := self._directly(schema):
            return any(id(other) in finite for other in direct)
        properties = schema.get("properties", {})
        needed = [properties[name] for name in schema.get("required", [])]
        if schema.get("minItems", 0) and "items" in schema:
            needed.append(schema["items"])
        return isinstance(schema.get("type"), list) or all(id(other) in finite for other in needed)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON[kind]) and (kind == "boolean" or not isinstance(value, bool))
