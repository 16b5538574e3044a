"""Which schemas are taken: those whose every word is kept, and none that could stop an engine."""

import json
from typing import Any

import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.text.json_schema import check


def test_a_schema_comes_back_as_text() -> None:
    schema = {"title": "é", "type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}}
    assert json.loads(check(schema)) == schema
    check({})


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "foo"}, 'schema.type: "foo" is not one of object, array'),
        ({"type": 5}, "schema.type: 5"),
        ({"type": []}, "schema.type: it names no type"),
        ({"properties": {}}, "schema: the keyword 'properties' needs type: object beside it"),
        ({"type": "object", "properties": 5}, "schema.properties: it must be an object"),
        ({"type": "object", "properties": {"a": True}}, "schema.properties.a: a schema must be an object"),
        ({"type": "object", "required": ["a"]}, "schema.required: 'a' is not among the properties"),
        ({"type": "object", "required": "a"}, "schema.required: it must be an array"),
        ({"type": "object", "patternProperties": {}}, "the keyword 'patternProperties' is not supported with type"),
        ({"type": "string", "pattern": "("}, "the keyword 'pattern' is not supported"),
        ({"type": "integer", "maximum": 1}, "the keyword 'maximum' is not supported with type integer"),
        ({"type": "number", "minimum": 1}, "the keyword 'minimum' is not supported with type number"),
        ({"allOf": [{"type": "null"}]}, "the keyword 'allOf' is not supported"),
        ({"not": {}}, "the keyword 'not' is not supported"),
        ({"type": "string", "format": "ipv4"}, "schema.format: supported"),
        ({"type": "string", "minLength": 5}, "the keyword 'minLength' is not supported"),
        ({"type": "array", "items": {}, "minItems": 5, "maxItems": 2}, "minItems is above maxItems"),
        ({"type": "array", "items": {}, "maxItems": 10**6}, "schema.maxItems: it must be an integer from 0 to 10,000"),
        ({"type": "array", "minItems": 1}, "the keyword 'minItems' needs items beside it"),
        ({"type": "object", "properties": {'a"b': {}}}, "has a quote, backslash or control character"),
        ({"type": "object", "properties": {"a\n": {}}}, "has a quote, backslash or control character"),
        ({"enum": ["\ud800"]}, "half of a surrogate pair"),
        ({"type": "array", "items": {}, "minItems": True}, "schema.minItems"),
        ({"enum": []}, "schema.enum: it must be an array of values"),
        ({"enum": list(range(501))}, "more than 500 enum values"),
        ({"type": "integer", "enum": [True]}, "schema.enum: a value is not of the type"),
        ({"enum": [1], "minimum": 0}, "the keyword 'minimum' is not supported beside 'enum'"),
        ({"anyOf": []}, "schema.anyOf"),
        ({"anyOf": [{"type": "null"}, {"type": "x"}]}, "schema.anyOf[1].type"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "not supported beside 'anyOf'"),
        ({"$ref": "#/$defs/a"}, 'schema.$ref: "#/$defs/a" is neither'),
        ({"$ref": "http://x/y"}, "schema.$ref"),
        ({"$ref": "#"}, "it refers to itself"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "type": "null"}, "schema.$defs.a: it refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "it refers to itself"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no finite document"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite document"),
        (nested(40), "nested deeper than 32"),
        ({"type": "object", "properties": {f"p{n}": {} for n in range(1000)}}, "more than 1000 schemas"),
        ({"description": "x" * 50_000}, "longer than 50,000 bytes"),
    ],
)
def test_what_could_not_be_kept_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(schema)
    assert says in caught.value.message
    assert (caught.value.param, caught.value.code, caught.value.status) == (
        "response_format",
        "invalid_json_schema",
        400,
    )
