"""An engine that is started again when it dies, without a loss for the requests that it was working on.

An answer depends on its request alone. So every request in flight is repeated on the new engine, and the tokens that
were already passed on are dropped. One of these requests may be what killed the engine. Therefore they are tried one
after the other, those with the fewest tokens first: the next is admitted once the one before has come past the point
that it had reached. If the engine dies again, the one on trial gets the error, and the trials go on without it. New
requests wait for the end of the trials. So does one whose client does not read: it could not come past any point
before its client reads again. Knows nothing of the engine inside.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from maas_ray.errors import DeploymentError
from maas_ray.serve.engines import Engine
from maas_ray.serve.text.types import GenerateRequest, SamplingParams, Tokens

_log = logging.getLogger("ray.serve")
_MARGIN = 64  # tokens that an engine may have computed, but not delivered, when it died
_RESTART_S = 600.0  # longest time of a restart
_PROOF = GenerateRequest([0, 0], max_tokens=2, seed=0, end_ids=(), sampling=SamplingParams(temperature=0.0))
"""A request that every working engine answers."""


class _Flight:
    """A request in flight."""

    def __init__(self) -> None:
        self.passed_on = Tokens([], [])
        self.repeated = 0  # tokens of the current attempt
        self.reached = 0  # tokens until which it is a suspect
        self.turn: asyncio.Event | None = None  # set when it is admitted; None: it is not a suspect
        self.guilty = False
        self.held = Tokens([], [])  # new tokens, to be passed on
        self.taken = True  # the client has read what was passed on, so it can go on

    def add(self, tokens: Tokens) -> None:
        """Add tokens of the current attempt; those that are new are held.

        Raises:
            DeploymentError: the repetition differs from what was passed on.
        """
        known = self.passed_on.ids[self.repeated : self.repeated + len(tokens.ids)]
        if tokens.ids[: len(known)] != known:
            raise DeploymentError("the text engine failed, and its answer cannot be continued.", code="engine_failed")
        self.repeated += len(tokens.ids)
        self.passed_on.ids.extend(tokens.ids[len(known) :])
        self.held.ids.extend(tokens.ids[len(known) :])
        self.held.logprobs.extend(tokens.logprobs[len(known) :])

    def take(self) -> Tokens:
        """The tokens that are held, for the client."""
        held, self.held, self.taken = self.held, Tokens([], []), False
        return held


class RestartingEngine:
    """The engine that `start` returns, and its successors. To be used from one event loop.

    Args:
        start: starts an engine; blocks until it is loaded. The first one is started by the constructor.
    """

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start, self._engine = start, start()
        self.supports = self._engine.supports
        self._loop: asyncio.AbstractEventLoop | None = None
        self._restart: asyncio.Task[None] | None = None
        self._restarting_since: float | None = None
        self._flights: set[_Flight] = set()  # on the current engine
        self._suspects: list[_Flight] = []  # the next one last
        self._on_trial: _Flight | None = None
        self._trials_over: asyncio.Event | None = None
        self._failed: DeploymentError | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Tokens, None]:
        self._loop = asyncio.get_running_loop()
        flight = _Flight()
        try:
            while True:
                engine = await self._admitted(flight)
                flight.repeated = 0
                self._flights.add(flight)
                try:
                    async with aclosing(engine.generate(request)) as stream:
                        async for tokens in stream:
                            flight.add(tokens)
                            if self._passed(flight) and flight.held.ids:
                                yield flight.take()
                                flight.taken = True
                    if self._passed(flight, whole=True) and flight.held.ids:
                        yield flight.take()
                    return
                except DeploymentError as error:
                    if engine is self._engine and _cause_of_death(engine) is None:
                        raise  # this request alone failed
                    self._bury(engine, error)
                    if flight.guilty or self._failed is not None:
                        raise
                finally:
                    self._flights.discard(flight)
        finally:
            if flight in self._suspects:
                self._suspects.remove(flight)
            if flight is self._on_trial and not flight.guilty:
                self._next_trial()

    def _passed(self, flight: _Flight, *, whole: bool = False) -> bool:
        """True if a request is not on trial, or has just passed it. Until then, nothing waits for its client.

        Args:
            flight: the request.
            whole: it has its whole answer.
        """
        if flight is self._on_trial:
            if flight.repeated <= flight.reached and not whole:
                return False
            flight.turn = None
            self._next_trial()
        return True

    def check(self) -> None:
        if self._failed is not None:
            raise self._failed
        since = self._restarting_since
        if since is not None:
            if time.monotonic() - since > _RESTART_S:
                raise DeploymentError(
                    f"the text engine has stopped, and has not started again for {_RESTART_S:g} s.",
                    code="engine_stopped",
                )
            return
        engine = self._engine
        death = _cause_of_death(engine)
        if death is not None:
            if self._loop is None or self._loop.is_closed():
                raise death
            self._loop.call_soon_threadsafe(self._bury, engine, death)

    def close(self) -> None:
        self._failed = self._failed or DeploymentError("the text engine has been closed.", code="engine_stopped")
        self._engine.close()

    async def _admitted(self, flight: _Flight) -> Engine:
        """The engine, when a request may begin on it."""
        while True:
            if self._failed is not None:
                raise self._failed
            if self._restart is not None:
                await asyncio.shield(self._restart)
            elif flight.turn is not None:
                await flight.turn.wait()
                if self._restart is None and self._failed is None:
                    return self._engine
            elif self._trials_over is not None:
                await self._trials_over.wait()
            else:
                death = _cause_of_death(self._engine)
                if death is None:
                    return self._engine
                self._bury(self._engine, death)

    def _bury(self, engine: Engine, death: DeploymentError) -> None:
        """Begin the restart after an engine's death, for the first who notices it."""
        if engine is not self._engine or self._restart is not None or self._failed is not None:
            return
        _log.error("a text engine is started again: %s", death)
        if self._on_trial is not None:
            self._on_trial.guilty = self._on_trial in self._flights
            if not self._on_trial.guilty:
                self._suspect(self._on_trial)
            self._on_trial = None
        for flight in self._flights:
            if flight.turn is None and flight.taken:
                self._suspect(flight)
        self._suspects.sort(key=lambda flight: -len(flight.passed_on.ids))
        if self._suspects and self._trials_over is None:
            self._trials_over = asyncio.Event()
        self._restarting_since = time.monotonic()
        self._restart = asyncio.create_task(self._start_again(engine))

    def _suspect(self, flight: _Flight) -> None:
        before = len(flight.passed_on.ids)
        flight.turn, flight.reached = asyncio.Event(), before + _MARGIN if before else 0
        self._suspects.append(flight)

    async def _start_again(self, old: Engine) -> None:
        try:
            self._engine = await asyncio.to_thread(self._successor, old)
            async with aclosing(self._engine.generate(_PROOF)) as tokens:
                async for _ in tokens:
                    pass
        except Exception as error:
            self._failed = self._failed or DeploymentError(
                f"the text engine does not start again: {error}", code="engine_stopped"
            )
        finally:
            if self._failed is not None:  # also if it was closed meanwhile
                self._engine.close()
            self._restart = self._restarting_since = None
            self._next_trial()

    def _successor(self, old: Engine) -> Engine:
        with suppress(Exception):
            old.close()  # first, because the memory may suffice for only one of them
        return self._start()

    def _next_trial(self) -> None:
        self._on_trial = None
        if self._failed is not None:  # they raise it
            for flight in self._suspects:
                if flight.turn is not None:
                    flight.turn.set()
            self._suspects.clear()
        if self._restart is not None:
            return
        if self._suspects:
            self._on_trial = self._suspects.pop()
            if self._on_trial.turn is not None:
                self._on_trial.turn.set()
        elif self._trials_over is not None:
            self._trials_over.set()
            self._trials_over = None


def _cause_of_death(engine: Engine) -> DeploymentError | None:
    """None: the engine works."""
    try:
        engine.check()
    except DeploymentError as death:
        return death
    return None
