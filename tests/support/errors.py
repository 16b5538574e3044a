"""Expecting an error by its class, its code and the values it names, whatever its wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from maas_ray.errors import MaasError, SpecError

E = TypeVar("E", bound=MaasError)


@contextmanager
def raises(kind: type[E], code: str, *values: object) -> "Iterator[pytest.ExceptionInfo[E]]":
    """Like `pytest.raises`, for this platform's errors.

    Args:
        kind: the class of the error.
        code: its code; of a `SpecError`, the code of one of its problems.
        values: what the message must name: fields, files, numbers. Not wording.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert code in (error.codes if isinstance(error, SpecError) else [error.code]), f"{error!r} has code {error.code}"
    for value in values:
        assert str(value) in str(error), f"{value!r} is not named in: {error}"
