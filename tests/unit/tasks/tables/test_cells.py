"""A table's cells: numbers, texts and missing values."""

import math
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from maas_ray.errors import InvalidError
from maas_ray.tasks.cells import category, cell, cell_of, number
from tests.support.errors import raises


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, "true"),
        (3, 3.0),
        (Decimal("1.5"), 1.5),
        (math.nan, None),
        (np.float32(2).item(), 2.0),
        (" x ", "x"),
        ("  ", None),
        ("True", "true"),
        (" FALSE", "false"),
        ("nan", None),
        ("-NaN", None),
        ("-", "-"),
        (date(2020, 2, 3), "2020-02-03"),
    ],
)
def test_a_cell_is_a_number_a_text_or_nothing(value: Any, expected: Any) -> None:
    assert cell(value) == expected


@pytest.mark.parametrize(
    ("value", "code", "named"),
    [
        ([1], "wrong_type", "list"),
        ({"a": 1}, "wrong_type", "dict"),
        (b"\xff", "not_text", "bytes"),
        (math.inf, "not_finite", "infinite"),
    ],
)
def test_a_value_that_cannot_be_a_cell_is_named(value: Any, code: str, named: str) -> None:
    with raises(InvalidError, code, named):
        cell(value)


def test_a_number_that_python_refuses_is_named_with_its_column() -> None:
    with raises(InvalidError, "invalid_number", "'price'"):
        cell_of("price", Decimal("sNaN"))


def test_cells_parse_as_numbers_and_as_categories() -> None:
    assert [number(value) for value in ("1e3", "-2", 0.5)] == [1000, -2, 0.5]
    assert math.isnan(number(None))
    assert [category(value) for value in (1.0, 1.5, "a", None)] == ["1", "1.5", "a", ""]
    assert [category(text) for text in ("1.0", "-20.00", "-0.0", "1.", "1.10", "01.0", ".0", "1.0.0")] == [
        *("1", "-20", "0", "1.", "1.10", "01.0", ".0", "1.0.0")
    ]
    assert category("9" * 400 + ".0") == "9" * 400 + ".0"
    assert category("12345678901234567891.0") == category(12345678901234567891.0)
    assert category(cell(np.int64(12345678901234567))) == "12345678901234567"
    for text in ("1_000", "x", "1,5", "inf", "0x1"):
        with raises(InvalidError, "not_a_number"):
            number(text)
