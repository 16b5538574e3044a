"""One engine for a base and its adapters: each adapter has an engine of its own, started by its first request.

A replica keeps a limited number of them. To start another one, it evicts the least recently used idle engine. A
request that needs this waits a few seconds for one to become idle; requests for loaded adapters do not wait for it.
The base is never disturbed: neither its answers nor its health depend on any adapter.
Knows neither how an adapter is added to a model nor which engine computes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from maas_ray.errors import OverloadedError
from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import Adapter, GenerateRequest, Tokens

_PATIENCE_S = 5.0  # longest wait for an adapter that can be evicted


@dataclass
class _Loaded:
    """An adapter's engine, which may still be starting, and the number of answers that it is generating."""

    engine: "Future[Engine]"
    answers: int = 0


class AdapterEngine:
    """A base's engine, and a cache of engines for adapters. To be used from one event loop.

    Args:
        base: generates for requests without an adapter.
        load: starts the engine of an adapter; called in a thread.
        max_adapters: most adapters at once.
        patience_s: longest wait for an eviction while every adapter is in use.
    """

    def __init__(
        self,
        base: Engine,
        load: Callable[[Adapter], Engine],
        max_adapters: int,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._base, self._load, self._max_adapters, self._patience_s = base, load, max_adapters, patience_s
        self.supports = base.supports
        self._loaded: dict[str, _Loaded] = {}  # by digest; the least recently used first
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._threads = ThreadPoolExecutor(1, "adapters")  # one starts at a time

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        if request.adapter is None:
            return self._base.generate(request)
        return self._adapted(request, request.adapter)

    def check(self) -> None:
        self._base.check()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for loaded in self._loaded.values():
            _close(loaded)
        self._base.close()

    async def _adapted(self, request: GenerateRequest, adapter: Adapter) -> AsyncGenerator[Tokens, None]:
        async with self._held(adapter) as engine, aclosing(engine.generate(request)) as stream:
            async for tokens in stream:
                yield tokens

    @asynccontextmanager
    async def _held(self, adapter: Adapter) -> AsyncGenerator[Engine, None]:
        """An adapter's engine, which is not evicted while the block runs. One that fails is started anew next time."""
        loaded = await self._loaded_or_loading(adapter)
        loaded.answers += 1
        try:
            # A request that is cancelled must not cancel the start that others wait for.
            yield await asyncio.shield(asyncio.wrap_future(loaded.engine))
        except Exception:
            if _failed(loaded) and self._loaded.get(adapter.digest) is loaded:
                self._threads.submit(_close, self._loaded.pop(adapter.digest))
            raise
        finally:
            loaded.answers -= 1
            self._left.set()

    async def _loaded_or_loading(self, adapter: Adapter) -> _Loaded:
        """The adapter's entry.

        Raises:
            OverloadedError: it is not loaded, and every other one stayed in use.
        """
        loaded = self._used(adapter)
        if loaded is not None:
            return loaded
        try:
            async with asyncio.timeout(self._patience_s), self._turn:  # in the order of requests
                return self._used(adapter) or await self._begin(adapter)
        except TimeoutError:
            raise OverloadedError(
                f"All {len(self._loaded)} adapters that a replica keeps loaded (max_adapters) are in use. Try again "
                "in 1 s."
            ) from None

    def _used(self, adapter: Adapter) -> _Loaded | None:
        """The adapter's entry, now the most recently used one. None: it is not loaded, or has failed."""
        loaded = self._loaded.pop(adapter.digest, None)
        if loaded is not None and _failed(loaded):
            self._threads.submit(_close, loaded)
            return None
        if loaded is not None:
            self._loaded[adapter.digest] = loaded
        return loaded

    async def _begin(self, adapter: Adapter) -> _Loaded:
        """Begin to load an adapter, once there is room."""
        while True:
            idle = next((digest for digest, one in self._loaded.items() if not one.answers), None)
            if len(self._loaded) < self._max_adapters:
                future = self._threads.submit(self._load, adapter)
            elif idle is not None:
                future = self._threads.submit(self._replace, self._loaded.pop(idle), adapter)
            else:
                self._left.clear()
                await self._left.wait()
                continue
            loaded = self._loaded[adapter.digest] = _Loaded(future)
            return loaded

    def _replace(self, old: _Loaded, adapter: Adapter) -> Engine:
        _close(old)  # first, because the memory may suffice for only one of them
        return self._load(adapter)


def _close(loaded: _Loaded) -> None:
    with suppress(Exception):  # it never started
        loaded.engine.result().close()


def _failed(loaded: _Loaded) -> bool:
    """True if an engine did not start, or has died since."""
    if not loaded.engine.done():
        return False
    try:
        loaded.engine.result().check()
    except Exception:
        return True
    return False
