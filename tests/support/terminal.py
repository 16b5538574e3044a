"""Results of a `maas` command in a terminal."""

from collections.abc import Callable
from typing import Any

Run = Callable[..., tuple[Any, str, str]]


def says(message: str, *values: str) -> bool:
    """True if a message is one line that names these values."""
    return message.count("\n") == 1 and all(value in message for value in values)


def fails(ended: tuple[Any, str, str], *values: str) -> bool:
    """True if a command printed nothing but one line of error with these values."""
    status, out, err = ended
    return (status, out) == (1, "") and says(err, *values)
