"""Preparing ahead: a thread makes the next item of an iterator while the current one is used."""

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

_LEAVE_SECONDS = 10.0


class Ahead(Generic[T]):
    """An iterator that is one item ahead of its reader, and counts how long the reader waits.

    An error is raised where its item would be. The thread ends with the block, however that ends, and closes the
    iterator. It is a daemon: if it hangs in a read, the process still ends.

    Args:
        items: what is read; only the thread calls it.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self.waited = 0.0
        """Seconds that the reader has waited."""
        self._items = items
        self._ready: queue.SimpleQueue[tuple[T] | BaseException] = queue.SimpleQueue()
        self._free = threading.Semaphore(1)  # a place for the item ahead
        self._left = False
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="maas-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._end is None:
            started = time.perf_counter()
            item = self._ready.get()
            self.waited += time.perf_counter() - started
            if isinstance(item, tuple):
                self._free.release()
                return item[0]
            self._end = item
        raise self._end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        self._free.release()
        self._thread.join(_LEAVE_SECONDS)

    def _run(self) -> None:
        try:
            while self._free.acquire() and not self._left:
                self._ready.put((next(self._items),))
        except BaseException as error:  # StopIteration too: each belongs to the reader
            self._ready.put(error)
        finally:
            if close := getattr(self._items, "close", None):
                close()
