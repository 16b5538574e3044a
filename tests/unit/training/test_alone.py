"""A run is trained by one process at a time; the next says who has it, waits, and goes on."""

import threading
import time
from typing import Any

import pytest

from maas_ray.settings import Settings
from maas_ray.training.runs import alone as module
from maas_ray.training.runs.alone import alone
from tests.support import forked


def test_the_second_waits_for_the_first_and_says_who_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    order: list[str] = []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with alone(settings, "m", "it"):
            inside.set()
            leave.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(30)
    with alone(settings, "m", "another"):
        assert not order, "another run does not wait"
    threading.Timer(0.3, leave.set).start()
    with alone(settings, "m", "it") as lease:
        order.append("second")
        lease.check()
    thread.join(30)
    assert order == ["first", "second"]
    said = capsys.readouterr().out
    assert "run it is being trained by " in said
    assert ", process " in said


def _train(home: str, inside: Any, leave: Any) -> None:
    with alone(Settings(home=home), "m", "it"):
        inside.set()
        leave.wait(60)


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_goes_on_as_soon_as_the_first_has_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], killed: bool
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    context = forked.context()
    inside, leave = context.Event(), context.Event()
    first = context.Process(target=_train, args=(settings.home, inside, leave))
    first.start()
    assert inside.wait(60)
    ended: list[float] = []

    def end() -> None:
        ended.append(time.monotonic())
        first.kill() if killed else leave.set()
        first.join(30)

    threading.Timer(0.3, end).start()
    with alone(settings, "m", "it") as lease:
        assert ended, "both train the run"
        assert time.monotonic() - ended[0] < module._SECONDS / 2, "it has waited until the lease expired"
        lease.check()
    first.join(30)
    assert f"run it is being trained by {lease.owner.split(',')[0]}, process {first.pid};" in capsys.readouterr().out
