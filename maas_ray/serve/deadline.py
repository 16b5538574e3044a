"""A deadline for many waits, with one timer: `asyncio.timeout_at` costs more than a piece of a stream."""

import asyncio
from types import TracebackType


class Deadline:
    """Ends what a task awaits within it with a `TimeoutError`, once the time has come.

    It may be entered again and again, one wait after another, from any task of the event loop.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancellations = 0  # those of the task when it began to wait
        self._over = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def __enter__(self) -> None:
        if self._over:
            raise TimeoutError
        self._task = asyncio.current_task()
        self._cancellations = self._task.cancelling() if self._task else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._over and task is not None:
            others = task.uncancel() > self._cancellations  # somebody else has cancelled the task too
            if kind is asyncio.CancelledError and not others:
                raise TimeoutError from error

    def _end(self) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()
