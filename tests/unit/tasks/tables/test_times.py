"""Times as instants; pandas says which instant a text is."""

from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import pandas as pd
import pytest

from maas_ray.errors import InvalidError
from maas_ray.tasks.tables.times import check_format, instant
from tests.support.errors import raises


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-20",
        "2024-01",
        "2024-01-20T10",
        "2024-01-20 10:05",
        "2024-01-20  10:05:30.25",
        "2024-01-20T10:05:30.123456789",
        "2024-01-20T10:05:30Z",
        "2024-01-20t10:05:30z",
        "2024-01-20 10:05:30+02",
        "2024-01-20 10:05:30 -0730",
        "2024-01-20 10:05:30 UTC",
        "1931-05-06",
    ],
)
def test_a_text_in_iso_8601_is_the_instant_that_pandas_reads(text: str) -> None:
    found = instant(text)
    assert found is not None
    assert found.value == pd.Timestamp(text).as_unit("ns").value


@pytest.mark.parametrize(
    ("text", "day"), [("2024Q3", "2024-07-01"), ("2024-q1", "2024-01-01"), ("2024-W03", "2024-01-15")]
)
def test_quarters_and_weeks_begin_on_their_first_day(text: str, day: str) -> None:
    assert instant(text) == instant(day) == instant(date.fromisoformat(day))


def test_a_value_and_its_text_are_one_instant() -> None:
    moment = datetime(2024, 3, 4, 5, 6, 7, 8, timezone(timedelta(hours=5.5)))
    assert instant(moment) == instant(moment.isoformat()) == instant(moment.astimezone(UTC))
    assert instant(pd.Timestamp("2024-03-04 05:06:07.000000009")) == instant("2024-03-04 05:06:07.000000009")
    assert instant(time(9, 30)) == instant("09:30")
    assert instant("7") == instant(7) == instant(7.0)
    assert instant("20180130", "%Y%m%d") == instant(20180130, "%Y%m%d") == instant(date(2018, 1, 30), "%Y%m%d")
    assert instant("30/01/2018 23:00", "%d/%m/%Y %H:%M") == instant("2018-01-30T23:00")
    assert [instant(value) for value in (None, "", float("nan"))] == [None] * 3


def test_large_whole_numbers_do_not_become_floats() -> None:
    """A float has 53 bits, so it cannot tell these nanoseconds apart."""
    first, second = instant("1706140800000000001"), instant("1706140800000000002")
    assert first is not None
    assert second is not None
    assert first < second


@pytest.mark.parametrize("value", ["20.01.2024", "01/20/2024", "2024-1-20", "Jan 20 2024", "2024-02-30", "soon", True])
def test_a_text_that_is_no_time_is_named(value: Any) -> None:
    with raises(InvalidError, "invalid_time", repr(str(value).lower() if value is True else value), "time_format"):
        instant(value)
    with raises(InvalidError, "invalid_time", "'%d %m %Y'"):
        instant(value, "%d %m %Y")


def test_a_format_must_read_what_it_writes() -> None:
    check_format("%d/%m/%Y %H:%M:%S%z")
    for form in ("dd/mm/yyyy", "%Q", "%", ""):
        with raises(InvalidError, "invalid_time_format", repr(form)):
            check_format(form)
