"""The loop of OpenVINO's process, around a pipeline that fails in every way: only what is at fault ends."""

import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
from openvino_genai import GenerationStatus

from maas_ray.serve.engines.openvino import process as loop
from maas_ray.serve.engines.openvino.process import FINISHED, REFUSED
from maas_ray.serve.text.types import GenerateRequest

RAISES_IN_ADD, RAISES_IN_READ, RAISES_IN_STEP, IGNORED = 1, 2, 3, 4  # first token of a prompt


class Handle:
    """One token for each step, three in all."""

    def __init__(self, first: int) -> None:
        self.first, self.left, self.ready, self.cancelled = first, 3, 0, False

    def get_status(self) -> GenerationStatus:
        if self.first == IGNORED:
            return GenerationStatus.IGNORED
        return GenerationStatus.RUNNING if self.left else GenerationStatus.FINISHED

    def can_read(self) -> bool:
        return self.ready > 0

    def read(self) -> dict[int, Any]:
        if self.first == RAISES_IN_READ:
            raise RuntimeError("source.cpp:12:\nunreadable\n")
        self.ready -= 1
        return {0: SimpleNamespace(generated_ids=[self.first], generated_log_probs=[-1.0])}

    def cancel(self) -> None:
        self.cancelled = True


class Pipeline:
    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def add_request(self, number: int, prompt: Any, config: Any) -> Handle:
        first = int(prompt.data[0][0])
        if first == RAISES_IN_ADD:
            raise RuntimeError("source.cpp:34:\nrefused for a reason.")
        self.handles.append(Handle(first))
        return self.handles[-1]

    def step(self) -> None:
        for handle in self._running():
            if handle.first == RAISES_IN_STEP:
                raise RuntimeError("the step failed")
            handle.left, handle.ready = handle.left - 1, handle.ready + 1

    def has_non_finished_requests(self) -> bool:
        return bool(self._running())

    def _running(self) -> list[Handle]:
        return [handle for handle in self.handles if handle.left and not handle.cancelled and handle.first != IGNORED]


class Process:
    """The loop in a thread, and the connection to it."""

    def __init__(self, connection: Connection, thread: threading.Thread) -> None:
        self.connection, self.thread, self.error = connection, thread, ""

    def answers(self, *firsts: int) -> dict[int, tuple[list[int], str]]:
        """The tokens and the end of requests that begin with these tokens."""
        for first in firsts:
            request = GenerateRequest([first, 9], max_tokens=3, seed=0, end_ids=())
            self.connection.send((first, request))
        found: dict[int, tuple[list[int], str]] = {first: ([], "") for first in firsts}
        while not all(end for _, end in found.values()):
            assert self.connection.poll(10)
            for number, tokens, end in self.connection.recv():
                found[number] = (found[number][0] + tokens.ids, end)
        return found


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setattr(loop, "_pipeline", lambda load: Pipeline())
    ours, theirs = Pipe()

    def serve() -> None:
        try:
            loop.serve(theirs)
        except EOFError:
            pass
        except RuntimeError as error:
            process.error = str(error)

    thread = threading.Thread(target=serve)
    process = Process(ours, thread)
    thread.start()
    ours.send(None)
    assert ours.poll(30)
    assert ours.recv() is None
    yield process
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_request_that_is_refused_or_unreadable_ends_alone(process: Process) -> None:
    found = process.answers(10, RAISES_IN_ADD, 11, RAISES_IN_READ, IGNORED, 12)
    assert found == {
        10: ([10] * 3, FINISHED),
        11: ([11] * 3, FINISHED),
        12: ([12] * 3, FINISHED),
        RAISES_IN_ADD: ([], f"{REFUSED}refused for a reason"),
        RAISES_IN_READ: ([], "unreadable"),
        IGNORED: ([], "it ended the request as IGNORED"),
    }
    assert process.answers(13) == {13: ([13] * 3, FINISHED)}


def test_a_cancellation_is_answered_by_a_sign_of_life(process: Process) -> None:
    process.connection.send((10, None))  # unknown, as after its end
    assert process.connection.poll(10)
    assert process.connection.recv() == []


def test_a_failed_step_ends_the_process(process: Process) -> None:
    """The pipeline may be in any state; `restarting` starts another one."""
    process.connection.send((10, GenerateRequest([10], max_tokens=3, seed=0, end_ids=())))
    process.connection.send((RAISES_IN_STEP, GenerateRequest([RAISES_IN_STEP], max_tokens=3, seed=0, end_ids=())))
    process.thread.join(10)
    assert process.error == "the step failed"
