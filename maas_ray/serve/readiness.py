"""The applications that can answer, as Serve's controller last reported them.

Probes never hang and never fail, whatever the controller does: at most one question is open at a time, in a thread of
its own, and for some time the last report stands. Models answer without the controller, too.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger("ray.serve")
_FRESH_SECONDS = 1.0
_FRESH_SECONDS_MISSING = 0.1  # for an application that the last report did not have yet
_PATIENCE_SECONDS = 2.0
_KEPT_SECONDS = 60.0
_T = TypeVar("_T")


class Readiness:
    """The applications that can answer.

    Args:
        ask: returns each application and if it can answer. May hang or raise.
        patience_s: longest wait for an answer.
        kept_s: time for which the last report stands if there is no answer.
    """

    def __init__(
        self,
        ask: Callable[[], dict[str, bool]] | None = None,
        *,
        patience_s: float = _PATIENCE_SECONDS,
        kept_s: float = _KEPT_SECONDS,
    ) -> None:
        self._ask, self._patience_s, self._kept_s = ask or _running_applications, patience_s, kept_s
        self._report: dict[str, bool] = {}
        self._reported_at = self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def ready(self, application: str) -> bool:
        """True if an application can answer. Takes at most `patience_s`."""
        fresh = _FRESH_SECONDS if application in self._report else _FRESH_SECONDS_MISSING
        now = time.monotonic()
        if self._asking is None and now - self._asked_at > fresh:
            self._asked_at = now
            self._asking = asyncio.create_task(self._refresh())
        left = self._asked_at + self._patience_s - now
        if self._asking is not None and left > 0:
            await asyncio.wait({self._asking}, timeout=left)
        return time.monotonic() - self._reported_at < self._kept_s and self._report.get(application, False)

    async def _refresh(self) -> None:
        try:
            self._report = await in_thread(self._ask)
            self._reported_at = time.monotonic()
        except Exception as error:
            _log.warning("Serve's controller did not report which applications run: %s", error)
        finally:
            self._asking = None


def in_thread(function: Callable[[], _T]) -> "asyncio.Future[_T]":
    """The result of a function that may hang for ever: it has a thread of its own, which ends with the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return future


def _running_applications() -> dict[str, bool]:
    from ray import serve

    return {
        name: status.status == "RUNNING"
        or all(one.replica_states.get("RUNNING", 0) > 0 for one in status.deployments.values())
        for name, status in serve.status().applications.items()
    }
