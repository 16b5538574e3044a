"""A JSON schema is accepted if each of its keywords can be enforced, and if it cannot stop an engine."""

import json
from typing import Any

import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.text.json_schema import check
from tests.support.errors import raises


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
    ("schema", "named"),
    [
        ({"type": "foo"}, 'schema.type: "foo"'),
        ({"type": 5}, "schema.type: 5"),
        ({"type": []}, "schema.type: "),
        ({"properties": {}}, "schema: the keyword 'properties'"),
        ({"type": "object", "properties": 5}, "schema.properties: "),
        ({"type": "object", "properties": {"a": True}}, "schema.properties.a: "),
        ({"type": "object", "required": ["a"]}, "schema.required: 'a'"),
        ({"type": "object", "required": "a"}, "schema.required: "),
        ({"type": "object", "patternProperties": {}}, "'patternProperties'"),
        ({"type": "string", "pattern": "("}, "'pattern'"),
        ({"type": "integer", "maximum": 1}, "'maximum'"),
        ({"type": "number", "minimum": 1}, "'minimum'"),
        ({"allOf": [{"type": "null"}]}, "'allOf'"),
        ({"not": {}}, "'not'"),
        ({"type": "string", "format": "ipv4"}, "schema.format: "),
        ({"type": "string", "minLength": 5}, "'minLength'"),
        ({"type": "array", "items": {}, "minItems": 5, "maxItems": 2}, "minItems"),
        ({"type": "array", "items": {}, "maxItems": 10**6}, "schema.maxItems: "),
        ({"type": "array", "minItems": 1}, "'minItems'"),
        ({"type": "object", "properties": {'a"b': {}}}, "schema.properties: "),
        ({"type": "object", "properties": {"a\n": {}}}, "schema.properties: "),
        ({"enum": ["\ud800"]}, "surrogate"),
        ({"type": "array", "items": {}, "minItems": True}, "schema.minItems"),
        ({"enum": []}, "schema.enum: "),
        ({"enum": list(range(501))}, "500"),
        ({"type": "integer", "enum": [True]}, "schema.enum: "),
        ({"enum": [1], "minimum": 0}, "'minimum'"),
        ({"anyOf": []}, "schema.anyOf"),
        ({"anyOf": [{"type": "null"}, {"type": "x"}]}, "schema.anyOf[1].type"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "'anyOf'"),
        ({"$ref": "#/$defs/a"}, 'schema.$ref: "#/$defs/a"'),
        ({"$ref": "http://x/y"}, "schema.$ref"),
        ({"$ref": "#"}, "schema: "),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "type": "null"}, "schema.$defs.a: "),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "schema: "),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "schema: "),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "schema: "),
        (nested(40), "32"),
        ({"type": "object", "properties": {f"p{n}": {} for n in range(1000)}}, "1000"),
        ({"description": "x" * 50_000}, "50,000 bytes"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(schema: dict[str, Any], named: str) -> None:
    with raises(RequestError, "invalid_json_schema", named) as caught:
        check(schema)
    assert (caught.value.param, caught.value.status) == ("response_format", 400)
