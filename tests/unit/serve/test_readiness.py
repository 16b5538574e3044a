"""Readiness while Serve's controller restarts: no probe hangs or fails, and one question is open at a time."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from maas_ray.serve import readiness
from maas_ray.serve.readiness import Readiness


class Controller:
    """Reports the application `a`; hangs while `up` is not set, and raises if it is broken."""

    def __init__(self) -> None:
        self.up, self.broken, self.asked = threading.Event(), False, 0
        self.up.set()
        self.report = {"a": True}

    def __call__(self) -> dict[str, bool]:
        self.asked += 1
        self.up.wait(20)
        if self.broken:
            raise RuntimeError("the controller restarts")
        return dict(self.report)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(readiness, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "_FRESH_SECONDS_MISSING", 0.0)
    return Controller()


def run(controller: Controller, probe: Callable[[Readiness], object], **limits: float) -> None:
    async def go() -> None:
        await probe(Readiness(controller, **({"patience_s": 0.05} | limits)))  # type: ignore[misc]

    try:
        asyncio.run(go())
    finally:
        controller.up.set()


def test_a_thousand_probes_of_a_controller_that_hangs_get_the_last_report(controller: Controller) -> None:
    async def probe(ready: Readiness) -> None:
        assert await ready.ready("a")
        controller.up.clear()
        began, asked = time.monotonic(), controller.asked
        assert set(await asyncio.gather(*(ready.ready("a") for _ in range(1000)))) == {True}
        for _ in range(100):  # one after the other, as for the models of a gateway
            assert await ready.ready("a")
        assert time.monotonic() - began < 5
        assert controller.asked == asked + 1
        assert await asyncio.wait_for(asyncio.to_thread(lambda: True), 1)  # the threads of others are free
        controller.report = {"a": False, "b": True}
        controller.up.set()
        while not await ready.ready("b"):
            await asyncio.sleep(0.01)
        assert not await ready.ready("a")

    run(controller, probe)


def test_errors_of_the_controller_leave_the_last_report_for_a_while(controller: Controller) -> None:
    async def probe(ready: Readiness) -> None:
        assert await ready.ready("a")
        controller.broken = True
        assert await ready.ready("a")
        await asyncio.sleep(0.3)
        assert not await ready.ready("a")
        controller.broken = False
        assert await ready.ready("a")

    run(controller, probe, kept_s=0.25)


def test_without_any_report_nothing_is_ready(controller: Controller) -> None:
    async def probe(ready: Readiness) -> None:
        assert not await ready.ready("a")
        controller.up.set()
        while not await ready.ready("a"):
            await asyncio.sleep(0.01)
        assert not await ready.ready("other")

    controller.up.clear()
    run(controller, probe)


def test_a_report_is_asked_for_once_a_second(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(ready: Readiness) -> None:
        for _ in range(5):
            assert await ready.ready("a")
        assert controller.asked == 1
        await ready.ready("new")  # an application that has just begun is not left out for a second
        assert controller.asked == 2

    monkeypatch.setattr(readiness, "_FRESH_SECONDS", 1.0)
    run(controller, probe)
