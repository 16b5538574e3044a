"""Values between tags: each gets a type of its parameter's schema, which may be any document."""

import json
from typing import Any

import pytest

from maas_ray.serve.text.tagged_arguments import to_json, types_of


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        ("5", ["integer"], "5"),
        (" 5.0\n", ["integer"], "5"),
        ("5.5", ["integer"], '"5.5"'),
        ("5", ["number"], "5"),
        ("1e999", ["number"], '"1e999"'),  # not a double, and Infinity is not JSON
        ("NaN", ["number"], '"NaN"'),
        ("1" * 30, ["integer"], "1" * 30),
        ("1" * 5000, ["integer"], f'"{"1" * 5000}"'),  # more digits than Python reads
        ("5", ["string"], '"5"'),
        ("5", ["string", "integer"], "5"),
        ("null", ["string", "null"], "null"),
        ("None", ["null", "string"], "null"),
        ("None", ["string"], '"None"'),
        ("False", ["boolean"], "false"),
        ("yes", ["boolean"], '"yes"'),
        ('[1, {"a": "ü"}]', ["array"], '[1, {"a": "ü"}]'),
        ("[1,", ["array"], '"[1,"'),
        ("[" * 100_000, ["array"], json.dumps("[" * 100_000)),
        ('{"a": 1}', [], '{"a": 1}'),
        ('"a"', [], json.dumps('"a"')),
        ("a b\n", [], json.dumps("a b\n")),
    ],
)
def test_a_parameters_text_becomes_a_value_of_its_type(text: str, types: list[str], value: str) -> None:
    assert to_json(text, frozenset(types)) == value
    json.loads(value)


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "string"}, {"oneOf": [{"type": "null"}]}]}, {"string", "null"}),
        ({"enum": ["a", 1, 2.5, None]}, {"string", "integer", "number", "null"}),
        ({"type": "string", "enum": ["a", 1]}, {"string"}),
        ({"const": True}, {"boolean"}),
        ({"$ref": "#/$defs/City"}, {"object"}),
        ({"$ref": "#/$defs/Circle"}, set()),
        ({"$ref": "#/$defs/none"}, set()),
        # Documents that are no schemas.
        ({"type": 5, "anyOf": 5, "enum": "ab", "$ref": 5}, set()),
        ({"type": [5, "string"]}, {"string"}),
        ([], set()),
        (None, set()),
    ],
)
def test_the_types_of_a_parameter_are_read_from_its_schema(schema: Any, types: set[str]) -> None:
    root = {"$defs": {"City": {"type": "object"}, "Circle": {"anyOf": [{"$ref": "#/$defs/Circle"}] * 2}}}
    assert types_of({"x": schema}, "x", root) == types
    assert types_of({"y": schema}, "x", root) == types_of([], "x", root) == frozenset()
