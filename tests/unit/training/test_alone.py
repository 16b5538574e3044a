"""A run is trained by one process at a time; the next says who has it, waits, and goes on."""

import threading

import pytest

from maas_ray.settings import Settings
from maas_ray.training.runs import alone as module
from maas_ray.training.runs.alone import alone


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
