"""Rows of all requests in flight, computed together: as many as fit a batch, or as come within a moment.

Serve's own batching keeps one queue for a method of a class, whichever object it is called on; a replica that
holds several models needs one for each, which ends with it.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Batches(Generic[Row, Answer]):
    """Called with a row, it gives the row's answer.

    Args:
        compute: a batch's answers in the order of its rows; called in one thread, so that the next batch gathers.
        size: most rows of a batch.
        wait_s: longest that a row waits for others while nothing is computed.
    """

    def __init__(self, compute: Callable[[list[Row]], Sequence[Answer]], *, size: int, wait_s: float) -> None:
        self._compute, self._size, self._wait_s = compute, size, wait_s
        self._rows: list[tuple[Row, asyncio.Future[Answer], float]] = []  # and since when they wait
        self._full = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "batches")

    async def __call__(self, row: Row) -> Answer:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._rows.append((row, answer, loop.time()))
        if len(self._rows) >= self._size:
            self._full.set()
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await answer

    def close(self) -> None:
        """End the thread; what is being computed is computed."""
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        """Compute while there are rows."""
        loop = asyncio.get_running_loop()
        try:
            while self._rows:
                if len(self._rows) < self._size:
                    self._full.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(self._rows[0][2] + self._wait_s):
                            await self._full.wait()
                batch, self._rows = self._rows[: self._size], self._rows[self._size :]
                batch = [one for one in batch if not one[1].done()]  # not those whose caller has left
                if not batch:
                    continue
                try:
                    answers = await loop.run_in_executor(self._thread, self._compute, [row for row, _, _ in batch])
                except Exception as error:
                    for _, answer, _ in batch:
                        if not answer.done():
                            answer.set_exception(error)
                else:
                    for (_, answer, _), found in zip(batch, answers, strict=True):
                        if not answer.done():
                            answer.set_result(found)
        finally:
            self._working = None
