"""One engine for a base and its adapters: each adapter an engine of its own, brought up when first asked for.

Of them the replica keeps so many; for one more, the one that was asked longest ago goes, once its answers are
finished. The base is never disturbed: neither its answers nor its health depend on any adapter. Knows
neither how an adapter is added to a model nor what computes.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import Adapter, GenerateRequest, Tokens


@dataclass
class _Loaded:
    """An adapter's engine, perhaps still coming up, and how many answers it works on."""

    engine: "Future[Engine]"
    answers: int = 0


class AdapterEngine:
    """A base's engine, and as many for adapters as are kept. To be used from one event loop.

    Args:
        base: generates where no adapter is asked for.
        load: brings up the engine of an adapter; called in a thread.
        keep: most adapters at once.
    """

    def __init__(self, base: Engine, load: Callable[[Adapter], Engine], keep: int) -> None:
        self._base, self._load, self._keep = base, load, keep
        self.supports = base.supports
        self._loaded: dict[str, _Loaded] = {}  # by digest; asked longest ago first
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._threads = ThreadPoolExecutor(1, "adapters")  # one comes up at a time

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
        async with self._held(adapter) as engine, aclosing(engine.generate(request)) as tokens:
            async for some in tokens:
                yield some

    @asynccontextmanager
    async def _held(self, adapter: Adapter) -> AsyncGenerator[Engine, None]:
        """An adapter's engine, which stays while the block runs. One that fails is brought up anew next time."""
        loaded = await self._place(adapter)
        loaded.answers += 1
        try:
            # Who leaves early does not take it from the others who wait for it.
            yield await asyncio.shield(asyncio.wrap_future(loaded.engine))
        except Exception:
            if _failed(loaded) and self._loaded.get(adapter.digest) is loaded:
                self._threads.submit(_close, self._loaded.pop(adapter.digest))
            raise
        finally:
            loaded.answers -= 1
            self._left.set()

    async def _place(self, adapter: Adapter) -> _Loaded:
        """The adapter, loaded or loading. In turn, so that one that waits for a place is not passed by others."""
        async with self._turn:
            loaded = self._loaded.pop(adapter.digest, None)
            if loaded is not None and _failed(loaded):
                self._threads.submit(_close, loaded)
                loaded = None
            while loaded is None:
                idle = next((digest for digest, one in self._loaded.items() if not one.answers), None)
                if len(self._loaded) < self._keep:
                    loaded = _Loaded(self._threads.submit(self._load, adapter))
                    break
                if idle is not None:
                    loaded = _Loaded(self._threads.submit(self._exchange, self._loaded.pop(idle), adapter))
                    break
                self._left.clear()
                await self._left.wait()
            self._loaded[adapter.digest] = loaded
        return loaded

    def _exchange(self, old: _Loaded, adapter: Adapter) -> Engine:
        _close(old)  # first: there may be memory for one of them only
        return self._load(adapter)


def _close(loaded: _Loaded) -> None:
    with suppress(Exception):  # it never came up
        loaded.engine.result().close()


def _failed(loaded: _Loaded) -> bool:
    """Whether an engine did not come up, or has died since."""
    if not loaded.engine.done():
        return False
    try:
        loaded.engine.result().check()
    except Exception:
        return True
    return False
