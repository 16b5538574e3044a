"""The JSON documents of every API."""

import json

import pytest

from maas_ray.errors import RequestError
from maas_ray.serve.api.validation import parse_json
from tests.support.errors import raises


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "1E+400", "1" + "0" * 400 + ".5", "1e0000309", "9" * 250 + "e99", "NaN", "-Infinity"]
)
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    for document in (number, f'{{"a": [1, {{"b": {number}}}]}}'):
        with raises(RequestError, "invalid_json"):
            parse_json(document.encode())


@pytest.mark.parametrize(
    "text", ["1.7976931348623157e308", "1e-999", '"1e999"', "1" + "0" * 400, "[1e308, true, null]"]
)
def test_finite_numbers_are_what_json_says(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)
