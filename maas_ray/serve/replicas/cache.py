"""A cache of loaded models: loads a model at its first request, and evicts the least recently used one to make room.

A model that is in use is never evicted. A model that cannot be loaded fails its own requests and no others. Knows
nothing of models or of Serve. To be used from one event loop.
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
_RETRY_S = 5.0  # pause before a failed load is retried
_PATIENCE_S = 5.0  # longest wait for a model that can be evicted


class Model(Protocol):
    """A loaded model."""

    def check_health(self) -> None:
        """Raise if the model can no longer answer."""

    def close(self) -> None:
        """Free the model's memory; may take a moment."""


M = TypeVar("M", bound=Model)


class _Entry(Generic[M]):
    """A model that is loaded or loading."""

    loading: "asyncio.Task[M]"

    def __init__(self, size: int) -> None:
        self.size, self.users = size, 0
        self.has_room = False  # set when it may load; until then it does not count against the limits

    @property
    def loaded(self) -> bool:
        return self.loading.done() and not self.loading.cancelled() and self.loading.exception() is None

    @property
    def healthy(self) -> bool:
        if not self.loaded:
            return True
        try:
            self.loading.result().check_health()
        except Exception as error:
            _log.warning("a model has stopped working and is loaded again: %s", error)
            return False
        return True


class ModelCache(Generic[M]):
    """Models by key.

    Args:
        load: loads the model of a key.
        max_models: most models at once.
        max_bytes: most bytes of all models at once.
        changed: called after a change of the keys.
        retry_s: pause before a failed load is retried.
        patience_s: longest wait for an eviction while every model is in use.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[M]],
        *,
        max_models: int,
        max_bytes: float,
        changed: Callable[[], None] = lambda: None,
        retry_s: float = _RETRY_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._load, self._changed = load, changed
        self._max_models, self._max_bytes = max_models, max_bytes
        self._retry_s, self._patience_s = retry_s, patience_s
        self._entries: OrderedDict[str, _Entry[M]] = OrderedDict()  # the least recently used first
        self._failed: dict[str, tuple[float, DeploymentError]] = {}  # time of the next attempt, and the error
        self._evicting = asyncio.Lock()
        self._released = asyncio.Event()

    def limit(self, *, max_models: int, max_bytes: float) -> None:
        """Change the limits, from the next load on."""
        self._max_models, self._max_bytes = max_models, max_bytes

    def loaded(self) -> list[M]:
        """The models that are loaded."""
        return [entry.loading.result() for entry in self._entries.values() if entry.loaded]

    def keys(self) -> list[str]:
        """The keys of models that are loaded or loading."""
        return list(self._entries)

    @asynccontextmanager
    async def use(self, key: str, size: int, *, max_users: int, retry: bool = False) -> AsyncIterator[M]:
        """The model, which is not evicted while the block runs.

        Args:
            key: the model's key.
            size: the model's bytes.
            max_users: most concurrent users of it.
            retry: retry a failed load at once.

        Raises:
            DeploymentError: the model cannot be loaded, or failed to load less than `retry_s` ago.
            OverloadedError: it has too many users; or all loaded models stayed in use, so none could be evicted.
        """
        entry = self._entries.get(key)
        if entry is not None and not entry.healthy:
            self._drop(key, entry)
            entry = None
        if entry is None:
            entry = self._begin(key, size, retry=retry)
        elif entry.users >= max_users:
            raise OverloadedError("Too many requests for this model are in progress. Try again in 1 s.")
        self._entries.move_to_end(key)
        entry.users += 1
        try:
            # A request that is cancelled must not cancel a load that others wait for.
            yield await asyncio.shield(entry.loading)
        finally:
            entry.users -= 1
            self._released.set()

    def close(self) -> None:
        """Close all models."""
        for model in self.loaded():
            model.close()
        self._entries.clear()

    def _begin(self, key: str, size: int, *, retry: bool) -> _Entry[M]:
        next_attempt, error = self._failed.get(key, (0.0, None))
        if error is not None and time.monotonic() < next_attempt and not retry:
            raise error
        if size > self._max_bytes:
            raise DeploymentError(
                f"its weights have {size / 1e9:.3g} GB, more than a shared replica's {self._max_bytes / 1e9:.3g} GB "
                "(weights_gb). Raise weights_gb, or set `replicas: own`.",
                code="model_too_large",
            )
        entry = self._entries[key] = _Entry(size)
        entry.loading = asyncio.create_task(self._load_entry(key, entry))
        # Read the error, so that asyncio does not report one that nobody awaits.
        entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._changed()
        return entry

    async def _load_entry(self, key: str, entry: _Entry[M]) -> M:
        deadline = time.monotonic() + self._patience_s
        try:
            async with self._evicting:  # in the order of requests
                await self._evict(entry.size, deadline)
                entry.has_room = True
            model = await self._load(key)
        except BaseException as error:
            self._entries.pop(key, None)
            self._released.set()
            self._changed()
            if not isinstance(error, Exception) or isinstance(error, OverloadedError):
                raise
            failure = DeploymentError(
                f"it could not be loaded: {error or type(error).__name__}", code="model_load_failed"
            )
            now = time.monotonic()
            self._failed = {name: failed for name, failed in self._failed.items() if failed[0] > now}
            self._failed[key] = (now + self._retry_s, failure)
            raise failure from error
        self._failed.pop(key, None)
        return model

    async def _evict(self, size: int, deadline: float) -> None:
        """Evict idle models until a model of this size fits; waits for one to become idle."""
        while True:
            held = [entry for entry in self._entries.values() if entry.has_room]
            if len(held) < self._max_models and sum(entry.size for entry in held) + size <= self._max_bytes:
                return
            idle = ((key, entry) for key, entry in self._entries.items() if entry.loaded and not entry.users)
            key, entry = next(idle, ("", None))
            if entry is not None:
                await self._drop(key, entry)
                continue
            self._released.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._released.wait()
            except TimeoutError:
                raise OverloadedError(f"All {len(held)} models of a replica are in use. Try again in 1 s.") from None

    def _drop(self, key: str, entry: _Entry[M]) -> "asyncio.Future[None]":
        """Remove a model and close it; the future is done when it is closed."""
        del self._entries[key]
        self._changed()
        return asyncio.get_running_loop().run_in_executor(None, _close, entry.loading.result())


def _close(model: Model) -> None:
    try:
        model.close()
    except Exception:
        _log.exception("an evicted model could not be closed")
