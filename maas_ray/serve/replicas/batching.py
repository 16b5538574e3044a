"""Dynamic batching: rows of all requests in flight share batches, up to a size and a waiting time.

Serve's own batching has one queue for each method of a class, shared by all objects. A replica with several models
needs one queue for each model, which ends with the model.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Batcher(Generic[Row, Answer]):
    """A function from a row to its answer, computed in batches.

    Args:
        compute: returns a batch's answers in the order of its rows. Called in a thread, while the next batch fills.
        size: most rows in a batch.
        wait_s: longest time that a row waits for others while nothing is being computed.
    """

    def __init__(self, compute: Callable[[list[Row]], Sequence[Answer]], *, size: int, wait_s: float) -> None:
        self._compute, self._size, self._wait_s = compute, size, wait_s
        self._rows: deque[tuple[Row, asyncio.Future[Answer], float]] = deque()  # with their times of arrival
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
        """Stop the thread, once the current batch is computed."""
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        """Compute batches while there are rows."""
        loop = asyncio.get_running_loop()
        try:
            while self._rows:
                if len(self._rows) < self._size:
                    self._full.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(self._rows[0][2] + self._wait_s):
                            await self._full.wait()
                batch = [self._rows.popleft() for _ in range(min(self._size, len(self._rows)))]
                batch = [entry for entry in batch if not entry[1].done()]  # without rows whose caller has left
                if not batch:
                    continue
                try:
                    answers = await loop.run_in_executor(self._thread, self._compute, [row for row, _, _ in batch])
                except Exception as error:
                    for _, answer, _ in batch:
                        if not answer.done():
                            answer.set_exception(error)
                else:
                    for (_, answer, _), result in zip(batch, answers, strict=True):
                        if not answer.done():
                            answer.set_result(result)
        finally:
            self._working = None
