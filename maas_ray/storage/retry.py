"""Retry with backoff: a storage failure often mends itself in seconds."""

import time
from collections.abc import Callable
from typing import TypeVar

from maas_ray.errors import CorruptError, NotFoundError, StorageError

_MAX_PAUSE = 30.0
_Result = TypeVar("_Result")


def retry_with_backoff(call: Callable[[], _Result], seconds: float, say: Callable[[str], None]) -> _Result:
    """The result of `call`, which is retried with exponential backoff while storage fails.

    Args:
        call: an idempotent operation.
        seconds: how long to retry; 0 calls once.
        say: called with a line for each failure that is retried.

    Raises:
        StorageError: the last failure.
    """
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return call()
        except CorruptError:
            raise  # damaged bytes stay damaged
        except (StorageError, NotFoundError) as error:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise
            pause = min(pause, remaining)
            say(f"{error}; retry in {pause:.1f} s")
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)
