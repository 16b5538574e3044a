"""Times as instants that can be compared: numbers, dates as a file types them, and texts.

A text is a number, ISO 8601, or in a format that the user gives. Text is never compared as text: `01/02/2024` sorts
before `31/01/2024`, and 02:00+02:00 is before 02:00+01:00. A time without a UTC offset is taken as UTC, and is never
compared with one that has an offset.
"""

import re
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from maas_ray.errors import InvalidError
from maas_ray.tasks.cells import category, cell, number

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SAMPLE = datetime(2001, 2, 3, 4, 5, 6, 789, UTC)
_QUARTER = re.compile(r"(\d{4})-?Q([1-4])")
_MONTH = re.compile(r"\d{4}-\d{2}")
_DATE_AND_TIME = re.compile(r"([^T ]+)(?:T| +)(.+)")
_OFFSET = re.compile(r" *(UTC|(?=[+-]\d))", re.IGNORECASE)
_NANOSECONDS = re.compile(r"[.,]\d{6}(\d{1,3})")


class Instant(NamedTuple):
    """A time. Only instants of one kind can be compared.

    Args:
        kind: what `value` counts, for a message.
        value: the number itself, or nanoseconds: since 1970-01-01T00:00Z for a date, since midnight for a time of day.
    """

    kind: str
    value: int | float


def instant(value: Any, form: str | None = None) -> Instant | None:
    """A value of a file as an instant. None if it is missing.

    Args:
        value: the value.
        form: the format of texts and numbers, as for Python's `strptime`. None: ISO 8601, and numbers as they are.

    Raises:
        InvalidError: it is not a time.
    """
    if isinstance(value, date):  # a datetime is a date
        return _of_date(value, getattr(value, "nanosecond", 0))
    if isinstance(value, time):
        return _of_time(value)
    text = cell(value)
    if text is None:
        return None
    if form is not None:
        try:
            return _of_date(datetime.strptime(category(text), form))
        except ValueError:
            raise InvalidError("invalid_time", f"{text!r}, which does not match time_format {form!r}") from None
    if not isinstance(text, str):
        return Instant("a number", text)
    try:
        return Instant("a number", int(text) if text.isdecimal() else number(text))
    except ValueError:
        return _of_iso(text)


def _of_iso(text: str) -> Instant:
    written = text.upper()
    try:
        if match := _QUARTER.fullmatch(written):
            return _of_date(date(int(match[1]), 3 * int(match[2]) - 2, 1))
        if _MONTH.fullmatch(written):
            return _of_date(date.fromisoformat(f"{written}-01"))
        if match := _DATE_AND_TIME.fullmatch(written):
            clock = _OFFSET.sub(lambda sign: "Z" if sign[1] else "", match[2], count=1)
            more = _NANOSECONDS.search(clock)
            return _of_date(datetime.fromisoformat(f"{match[1]}T{clock}"), int(more[1].ljust(3, "0")) if more else 0)
        return _of_time(time.fromisoformat(written)) if ":" in written else _of_date(date.fromisoformat(written))
    except ValueError:
        raise InvalidError(
            "invalid_time",
            f"{text!r}, which is neither a number nor an ISO 8601 date; give its format, such as "
            "`time_format: '%d/%m/%Y %H:%M'`",
        ) from None


def _of_date(value: date, nanoseconds: int = 0) -> Instant:
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    kind = "a date without a UTC offset" if moment.tzinfo is None else "a date with a UTC offset"
    since = (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH
    return Instant(kind, ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000 + nanoseconds)


def _of_time(value: time) -> Instant:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return Instant("a time of day", (seconds * 1_000_000 + value.microsecond) * 1000)


def check_format(form: str) -> None:
    """Return if a format can read what it writes.

    Raises:
        InvalidError: it cannot, or it has no field.
    """
    try:
        written = _SAMPLE.strftime(form)
        datetime.strptime(written, form)
        valid = written != form
    except ValueError:
        valid = False
    if not valid:
        raise InvalidError(
            "invalid_time_format",
            f"time_format: {form!r} is not a format of Python's strptime; write one such as '%d/%m/%Y %H:%M'.",
        )
