"""Which models stay, which make room, and what those who ask notice of it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from maas_ray.errors import CorruptError, DeploymentError, OverloadedError
from maas_ray.serve.replicas.cache import ModelCache
from tests.support.errors import raises


class Model:
    """Says how it fares."""

    def __init__(self, key: str, log: list[str]) -> None:
        self.key, self.log, self.ill = key, log, False
        log.append(f"+{key}")

    def check_health(self) -> None:
        if self.ill:
            raise DeploymentError("its process is gone")

    def close(self) -> None:
        self.log.append(f"-{self.key}")


class Shelf:
    """An `ModelCache` with what it loaded and ended, and loads that can be held up or fail."""

    def __init__(self, **limits: float) -> None:
        self.log: list[str] = []
        self.held = asyncio.Event()
        self.held.set()
        self.errors: dict[str, BaseException] = {}
        self.models = ModelCache(
            self._load,
            **{"max_models": 2, "max_bytes": 100, "patience_s": 0.2, "retry_s": 0.2} | limits,
            changed=self._note,
        )
        self.told: list[list[str]] = []

    async def _load(self, key: str) -> Model:
        await self.held.wait()
        if key in self.errors:
            raise self.errors[key]
        return Model(key, self.log)

    def _note(self) -> None:
        self.told.append(self.models.keys())

    async def ask(self, key: str, size: int = 1, max_users: int = 9, *, seconds: float = 0, retry: bool = False) -> str:
        async with self.models.use(key, size, max_users=max_users, retry=retry) as model:
            await asyncio.sleep(seconds)
            return model.key


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


def test_the_least_recently_used_model_is_evicted() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        for key in "ababcab":
            assert await shelf.ask(key) == key
        # c came when a was the older; a, then b, came again.
        assert shelf.log == ["+a", "+b", "-a", "+c", "-b", "+a", "-c", "+b"]
        assert shelf.models.keys() == ["a", "b"]
        assert shelf.told[-1] == ["a", "b"]
        assert await asyncio.gather(*(shelf.ask("a") for _ in range(5))) == ["a"] * 5
        shelf.models.close()
        assert shelf.log[-2:] == ["-b", "-a"]

    run(scenario)


def test_models_are_evicted_by_bytes_too() -> None:
    async def scenario() -> None:
        shelf = Shelf(max_models=9)
        for key, size in (("a", 40), ("b", 40), ("c", 90), ("d", 10)):
            await shelf.ask(key, size)
        assert shelf.log == ["+a", "+b", "-a", "-b", "+c", "+d"]
        with raises(DeploymentError, "model_too_large", "weights_gb", "replicas: own"):
            await shelf.ask("e", 101)
        assert shelf.models.keys() == ["c", "d"]

    run(scenario)


def test_a_model_in_use_is_not_evicted_and_waiting_has_a_limit() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        long = [asyncio.create_task(shelf.ask(key, seconds=5)) for key in "ab"]
        await asyncio.sleep(0.01)
        with raises(OverloadedError, "rate_limit_exceeded", "2 models"):
            await shelf.ask("c")
        assert shelf.log == ["+a", "+b"]
        waiting = asyncio.create_task(shelf.ask("c"))
        await asyncio.sleep(0.05)
        long[1].cancel()  # as when a client leaves: b, though used after a, is the one that nobody uses
        assert await waiting == "c"
        assert shelf.log == ["+a", "+b", "-b", "+c"]
        assert await shelf.ask("b") == "b"  # one that found no room is tried again at once
        long[0].cancel()

    run(scenario)


def test_concurrent_requests_load_a_model_once_and_may_be_cancelled() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        shelf.held.clear()
        asking = [asyncio.create_task(shelf.ask("a")) for _ in range(4)]
        await asyncio.sleep(0)
        assert shelf.told == [["a"]]  # said while it is on its way
        for one in asking[:2]:
            one.cancel()
        await asyncio.sleep(0)
        shelf.held.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert found[2:] == ["a", "a"]
        assert shelf.log == ["+a"]
        shelf.held.clear()
        left = asyncio.create_task(shelf.ask("b"))
        await asyncio.sleep(0.01)
        left.cancel()
        shelf.held.set()
        await asyncio.sleep(0.01)
        assert shelf.models.keys() == ["a", "b"]  # it came though nobody waits any more

    run(scenario)


def test_too_many_for_one_model_are_refused() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        busy = [asyncio.create_task(shelf.ask("a", max_users=2, seconds=1)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with raises(OverloadedError, "rate_limit_exceeded", "this model"):
            await shelf.ask("a", max_users=2)
        assert await shelf.ask("b", max_users=2) == "b"
        for one in busy:
            one.cancel()

    run(scenario)


def test_a_model_that_cannot_be_loaded_fails_alone_and_is_retried_later() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        await shelf.ask("a")
        shelf.errors["bad"] = CorruptError("sha256 differs")
        tries = 0
        load = shelf._load

        async def counted(key: str) -> Model:
            nonlocal tries
            tries += key == "bad"
            return await load(key)

        shelf.models._load = counted
        answers = await asyncio.gather(*(shelf.ask("bad") for _ in range(9)), shelf.ask("a"), return_exceptions=True)
        assert {str(one) for one in answers[:9]} == {"it could not be loaded: sha256 differs"}
        assert answers[9] == "a"
        with raises(DeploymentError, "model_load_failed", "sha256"):
            await shelf.ask("bad")
        assert tries == 1
        with raises(DeploymentError, "model_load_failed", "sha256"):
            await shelf.ask("bad", retry=True)  # a deployer asks
        assert tries == 2
        del shelf.errors["bad"]
        await asyncio.sleep(0.25)
        assert await shelf.ask("bad") == "bad"
        assert shelf.models.keys() == ["a", "bad"]

    run(scenario)


def test_loads_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        shelf.held.clear()
        slow = asyncio.create_task(shelf.ask("slow"))
        await asyncio.sleep(0.01)
        shelf.models._load = lambda key: asyncio.sleep(0, Model(key, shelf.log))
        assert await shelf.ask("quick") == "quick"
        assert not slow.done()
        slow.cancel()
        shelf.held.set()
        with suppress(asyncio.CancelledError):
            await slow

    run(scenario)


def test_a_model_that_has_stopped_working_is_loaded_again() -> None:
    async def scenario() -> None:
        shelf = Shelf()
        async with shelf.models.use("a", 1, max_users=9) as model:
            model.ill = True
            assert await shelf.ask("a") == "a"  # another one
        await asyncio.sleep(0.01)
        assert sorted(shelf.log) == ["+a", "+a", "-a"]
        assert shelf.models.keys() == ["a"]

    run(scenario)
