"""An engine may die of one request: the others get their whole answers, and it the error."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines.restarting import RestartingEngine
from maas_ray.serve.text.types import GenerateRequest, SamplingParams, Tokens
from tests.support.errors import raises


class Mortal:
    """Says the prompt's first token plus 0, 1, 2 …; dies when a request with a negative prompt [-n] has n - 1 tokens.

    Args:
        log: notes each prompt that begins.
    """

    supports = frozenset({"logprobs"})

    def __init__(self, log: list[int]) -> None:
        self.log, self.died, self.closed = log, "", False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        first = request.prompt_ids[0]
        self.check()
        self.log.append(first)
        for count in range(request.max_tokens):
            if count == -first - 1:
                self.died = f"of {first}"
            self.check()
            yield Tokens([first + count], [-0.5 * count] if request.sampling.logprobs else [])
            await asyncio.sleep(0.001)

    def check(self) -> None:
        if self.died:
            raise DeploymentError(f"it died {self.died}", code="engine_stopped")

    def close(self) -> None:
        self.closed = True


class Lives:
    """The engines that were started, and the one that is asked."""

    def __init__(self) -> None:
        self.log: list[int] = []
        self.started: list[Mortal] = []
        self.fails, self.seconds = "", 0.0
        self.engine = RestartingEngine(self._start)

    def _start(self) -> Mortal:
        time.sleep(self.seconds)
        assert all(engine.closed for engine in self.started)
        if self.fails:
            raise DeploymentError(self.fails, code="model_load_failed")
        self.started.append(Mortal(self.log))
        return self.started[-1]

    async def ask(self, first: int, tokens: int = 100, *, logprobs: bool = False) -> list[int]:
        ids: list[int] = []
        sampling = SamplingParams(logprobs=logprobs)
        request = GenerateRequest([first], max_tokens=tokens, seed=0, end_ids=(), sampling=sampling)
        async with aclosing(self.engine.generate(request)) as stream:
            async for some in stream:
                ids += some.ids
                assert some.logprobs == ([-0.5 * (one - first) for one in some.ids] if logprobs else [])
        return ids


def whole(first: int, tokens: int = 100) -> list[int]:
    return [first + count for count in range(tokens)]


async def failed(answer: "asyncio.Future[list[int]]", code: str = "engine_stopped") -> bool:
    with raises(DeploymentError, code):
        await answer
    return True


@pytest.mark.parametrize("poison", [-1, -2, -40])
def test_one_request_that_kills_the_engine_fails_alone(poison: int) -> None:
    lives = Lives()

    async def ask() -> None:
        others = [asyncio.create_task(lives.ask(1000 * number, logprobs=number == 2)) for number in (1, 2, 3)]
        await asyncio.sleep(0.02)
        bad = asyncio.create_task(lives.ask(poison))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(lives.ask(9000))  # arrives before, during or after the restart
        assert await failed(bad)
        assert await asyncio.gather(*others, late) == [whole(1000), whole(2000), whole(3000), whole(9000)]
        assert await lives.ask(5, 3) == whole(5, 3)
        lives.engine.check()

    asyncio.run(ask())
    assert len(lives.started) == 3  # one death in a crowd, one on trial
    assert [engine.closed for engine in lives.started] == [True, True, False]


def test_each_of_several_that_kill_fails_and_no_other() -> None:
    lives = Lives()

    async def ask() -> None:
        asked = [1000, -1, 2000, -1, -20, 3000]
        answers = await asyncio.gather(*(lives.ask(one) for one in asked), return_exceptions=True)
        for one, answer in zip(asked, answers, strict=True):
            assert isinstance(answer, DeploymentError) if one < 0 else answer == whole(one)

    asyncio.run(ask())


def test_a_request_that_was_there_by_chance_is_repeated() -> None:
    lives = Lives()

    async def ask() -> None:
        answer = asyncio.create_task(lives.ask(1000))
        await asyncio.sleep(0.02)
        lives.started[0].died = "of something else"
        assert await answer == whole(1000)

    asyncio.run(ask())
    assert len(lives.started) == 2


def test_one_that_leaves_on_trial_or_before_lets_the_next_have_its_turn() -> None:
    lives = Lives()

    async def ask() -> None:
        tasks = [asyncio.create_task(lives.ask(1000 * number)) for number in (1, 2, 3, 4)]
        await asyncio.sleep(0.02)
        lives.seconds = 0.05
        lives.started[0].died = "of something else"
        await asyncio.sleep(0.03)  # during the restart
        tasks[0].cancel()
        while len(lives.started) < 2 or lives.engine._on_trial is None:
            await asyncio.sleep(0.001)
        for task, number in ((task, number) for number, task in enumerate(tasks, 1)):
            if lives.log[-1] == 1000 * number:
                task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(answer, asyncio.CancelledError) for answer in answers) in (1, 2)
        for number, answer in enumerate(answers, 1):
            assert isinstance(answer, asyncio.CancelledError) or answer == whole(1000 * number)
        assert await lives.ask(5, 3) == whole(5, 3)

    asyncio.run(ask())


def test_an_idle_death_is_noticed_by_the_next_request_or_check() -> None:
    lives = Lives()

    async def ask() -> None:
        lives.started[-1].died = "in its sleep"
        assert await lives.ask(1, 2) == [1, 2]
        lives.started[-1].died = "in its sleep"
        await asyncio.to_thread(lives.engine.check)  # as Serve does; it works again soon
        deadline = time.monotonic() + 5
        while len(lives.started) < 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        lives.engine.check()

    asyncio.run(ask())


def test_an_engine_that_does_not_start_again_fails_its_requests_and_its_check() -> None:
    lives = Lives()

    async def ask() -> None:
        answers = [asyncio.create_task(lives.ask(1000 * number)) for number in (1, 2)]
        await asyncio.sleep(0.01)
        lives.fails = "no memory"
        lives.started[0].died = "of hunger"
        for answer in answers:
            with raises(DeploymentError, "engine_stopped", "no memory"):
                await answer
        with raises(DeploymentError, "engine_stopped", "no memory"):
            await lives.ask(1)

    asyncio.run(ask())
    with raises(DeploymentError, "engine_stopped", "no memory"):
        lives.engine.check()


def test_an_engine_that_starts_but_answers_nothing_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives()
    start: Callable[[], Mortal] = lives._start

    def start_dead() -> Mortal:
        engine = start()
        engine.died = "at birth"
        return engine

    async def ask() -> None:
        lives.engine._start = start_dead
        lives.started[0].died = "of something else"
        with raises(DeploymentError, "engine_stopped", "at birth"):
            await lives.ask(1)

    asyncio.run(ask())
    assert all(engine.closed for engine in lives.started)


def test_one_request_s_own_failure_does_not_restart_the_engine() -> None:
    lives = Lives()

    async def ask() -> None:
        async def fails(request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
            yield Tokens([1])
            raise DeploymentError("only this one", code="engine_failed")

        lives.started[0].generate = fails  # type: ignore[method-assign]
        with raises(DeploymentError, "engine_failed", "only this one"):
            await lives.ask(1)

    asyncio.run(ask())
    assert len(lives.started) == 1


def test_an_answer_that_differs_when_repeated_is_not_continued() -> None:
    lives = Lives()

    async def ask() -> None:
        stream = lives.engine.generate(GenerateRequest([1000], max_tokens=50, seed=0, end_ids=()))
        assert (await anext(stream)).ids == [1000]
        lives.started[0].died = "of something else"
        changed = lives._start

        def start() -> Mortal:
            engine = changed()
            engine.generate = lambda request: Mortal.generate(  # type: ignore[method-assign]
                engine, GenerateRequest([7], max_tokens=50, seed=0, end_ids=())
            )
            return engine

        lives.engine._start = start
        with raises(DeploymentError, "engine_failed"):
            async for _ in stream:
                pass

    asyncio.run(ask())


def test_a_closed_engine_stays_closed() -> None:
    lives = Lives()

    async def ask() -> None:
        answer = asyncio.create_task(lives.ask(1000))
        await asyncio.sleep(0.01)
        lives.engine.close()
        lives.started[0].died = "when it was closed"
        assert await failed(answer)

    asyncio.run(ask())
    assert len(lives.started) == 1
    assert threading.active_count() < 50


def test_a_client_that_does_not_read_holds_up_no_other() -> None:
    """Neither before its trial, which would never begin, nor during it."""
    lives = Lives()

    async def ask() -> None:
        stream = lives.engine.generate(GenerateRequest([1000], max_tokens=200, seed=0, end_ids=()))
        ids = (await anext(stream)).ids
        other = asyncio.create_task(lives.ask(2000, 200))
        await asyncio.sleep(0.02)
        lives.started[0].died = "of something else"
        assert await asyncio.wait_for(other, 10) == whole(2000, 200)
        late = asyncio.create_task(lives.ask(3000))
        ids += (await anext(stream)).ids  # it reads again: its answer goes on
        assert await asyncio.wait_for(late, 10) == whole(3000)
        async for tokens in stream:
            ids += tokens.ids
        assert ids == whole(1000, 200)

    asyncio.run(ask())
    assert len(lives.started) == 2


def test_a_trial_does_not_wait_for_its_client() -> None:
    lives = Lives()

    async def slowly() -> list[int]:
        ids: list[int] = []
        request = GenerateRequest([1000], max_tokens=90, seed=0, end_ids=())
        async with aclosing(lives.engine.generate(request)) as stream:
            async for tokens in stream:
                ids += tokens.ids
                if lives.started[1:]:
                    reading.set()
                    await asyncio.wait_for(over.wait(), 10)
        return ids

    async def ask() -> None:
        slow, other = asyncio.create_task(slowly()), asyncio.create_task(lives.ask(2000, 200))
        await asyncio.sleep(0.02)
        lives.started[0].died = "of something else"
        await asyncio.wait_for(reading.wait(), 10)
        assert await asyncio.wait_for(other, 10) == whole(2000, 200)
        over.set()
        assert await slow == whole(1000, 90)

    reading, over = asyncio.Event(), asyncio.Event()
    asyncio.run(ask())
