"""The models used last, as many as there is room for: loaded when asked for, ended when another needs the room.

One that is in use is never ended, and one that cannot be loaded fails those who ask for it and nobody else.
Knows nothing of what a model is, nor of Serve; it lives on one event loop.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from maas_ray.errors import DeploymentError, OverloadedError

_log = logging.getLogger("ray.serve")
_PAUSE_S = 5.0  # before what could not be loaded is tried again
_PATIENCE_S = 5.0  # longest wait for a model that nobody uses


class Model(Protocol):
    """What is kept."""

    def check_health(self) -> None:
        """Raises where it can work no longer."""

    def close(self) -> None:
        """Free what it holds; may take a moment."""


M = TypeVar("M", bound=Model)


class _Entry(Generic[M]):
    """A model that is loaded, or on its way."""

    loading: "asyncio.Task[M]"

    def __init__(self, size: int) -> None:
        self.size, self.users = size, 0
        self.has_room = False  # from when it may load; before, it takes none

    @property
    def loaded(self) -> bool:
        return self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None

    @property
    def well(self) -> bool:
        if not self.loaded:
            return True
        try:
            self.loading.result().check_health()
        except Exception as error:
            _log.warning("a model has stopped working and is loaded anew: %s", error)
            return False
        return True


class Lru(Generic[M]):
    """Models by key.

    Args:
        load: makes the model of a key.
        most: most of them at once.
        most_bytes: most bytes of them at once.
        changed: called when there are others than before, those on their way among them.
        pause_s: how long a model that could not be loaded is not tried again.
        patience_s: longest wait for room where every model is in use.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[M]],
        *,
        most: int,
        most_bytes: float,
        changed: Callable[[], None] = lambda: None,
        pause_s: float = _PAUSE_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._load, self._changed = load, changed
        self._most, self._most_bytes = most, most_bytes
        self._pause_s, self._patience_s = pause_s, patience_s
        self._entries: OrderedDict[str, _Entry[M]] = OrderedDict()  # the one used longest ago first
        self._failed: dict[str, tuple[float, DeploymentError]] = {}  # until when it is not tried again
        self._making_room = asyncio.Lock()
        self._released = asyncio.Event()

    def limit(self, *, most: int, most_bytes: float) -> None:
        """Other limits, from the next model that needs room."""
        self._most, self._most_bytes = most, most_bytes

    def keys(self) -> list[str]:
        """Those that are loaded, or on their way."""
        return list(self._entries)

    @asynccontextmanager
    async def use(self, key: str, size: int, *, most_users: int, again: bool = False) -> AsyncIterator[M]:
        """The model, for as long as the block runs.

        Args:
            key: which.
            size: its bytes.
            most_users: most that use it at once.
            again: try to load it also where that failed a moment ago.

        Raises:
            DeploymentError: it cannot be loaded, or could not a moment ago.
            OverloadedError: too many use it; or all that are loaded are in use, and none became free.
        """
        entry = self._entries.get(key)
        if entry is not None and not entry.well:
            self._drop(key, entry)
            entry = None
        if entry is None:
            entry = self._begin(key, size, again=again)
        elif entry.users >= most_users:
            raise OverloadedError("Too many requests for this model are being worked on. Try again in 1 s.")
        self._entries.move_to_end(key)
        entry.users += 1
        try:
            # Who leaves does not end what others may wait for, and what the next one will.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            self._released.set()

    def close(self) -> None:
        """End all."""
        for entry in self._entries.values():
            if entry.loaded:
                entry.loading.result().close()
        self._entries.clear()

    def _begin(self, key: str, size: int, *, again: bool) -> _Entry[M]:
        until, error = self._failed.get(key, (0.0, None))
        if error is not None and time.monotonic() < until and not again:
            raise error
        if size > self._most_bytes:
            raise DeploymentError(
                f"its weights are {size / 1e9:.3g} GB, and a shared replica holds {self._most_bytes / 1e9:.3g} GB "
                "(weights_gb). Raise that, or set `replicas: own`."
            )
        entry = self._entries[key] = _Entry(size)
        entry.loading = asyncio.create_task(self._bring(key, entry))
        entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # also if nobody waits
        self._changed()
        return entry

    async def _bring(self, key: str, entry: _Entry[M]) -> M:
        deadline = time.monotonic() + self._patience_s
        try:
            async with self._making_room:  # in the order they were asked for
                await self._make_room(entry.size, deadline)
                entry.has_room = True
            model = await self._load(key)
        except BaseException as error:
            self._entries.pop(key, None)
            self._released.set()
            self._changed()
            if not isinstance(error, Exception) or isinstance(error, OverloadedError):
                raise
            failure = DeploymentError(f"it could not be loaded: {error or type(error).__name__}")
            now = time.monotonic()
            self._failed = {name: one for name, one in self._failed.items() if one[0] > now}
            self._failed[key] = (now + self._pause_s, failure)
            raise failure from error
        self._failed.pop(key, None)
        return model

    async def _make_room(self, size: int, deadline: float) -> None:
        """Return when one more fits."""
        while True:
            held = [entry for entry in self._entries.values() if entry.has_room]
            if len(held) < self._most and sum(entry.size for entry in held) + size <= self._most_bytes:
                return
            idle = ((key, entry) for key, entry in self._entries.items() if entry.loaded and not entry.users)
            key, found = next(idle, ("", None))
            if found is not None:
                await self._drop(key, found)
                continue
            self._released.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._released.wait()
            except TimeoutError:
                raise OverloadedError(
                    f"All {len(held)} models that a replica holds are in use. Try again in 1 s."
                ) from None

    def _drop(self, key: str, entry: _Entry[M]) -> "asyncio.Future[None]":
        """Forget a model and end it; the future says when it has ended."""
        del self._entries[key]
        self._changed()
        return asyncio.get_running_loop().run_in_executor(None, _close, entry.loading.result())


def _close(model: Model) -> None:
    try:
        model.close()
    except Exception:
        _log.exception("a model that made room did not end well")
