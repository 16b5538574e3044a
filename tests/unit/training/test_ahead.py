"""One thread prepares the next pass while the current one is computed."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from maas_ray.training.plan import Plan
from maas_ray.training.worker.ahead import Ahead
from maas_ray.training.worker.batches import Batches
from tests.support import weighing
from tests.support.weighing import Weighing


class Source:
    """Numbers from 0, with what the thread has done so far.

    Args:
        fails_at: the number that cannot be read.
        seconds: how long each takes.
    """

    def __init__(self, fails_at: int = -1, seconds: float = 0.0) -> None:
        self.begun = threading.Semaphore(0)
        self.read: list[int] = []
        self.closed = False
        self.thread = ""
        self._fails_at, self._seconds = fails_at, seconds

    def __call__(self, count: int) -> Iterator[int]:
        self.thread = threading.current_thread().name
        try:
            for number in range(count):
                self.begun.release()
                time.sleep(self._seconds)
                if number == self._fails_at:
                    raise OSError(number)
                self.read.append(number)
                yield number
        finally:
            self.closed = True


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "maas-ahead"]


def test_items_come_in_order_from_one_other_thread_that_ends_with_them() -> None:
    source = Source()
    with Ahead(source(50)) as ahead:
        assert list(ahead) == list(range(50))
        assert next(ahead, "end") == "end"
    assert (source.thread, threads(), source.closed) == ("maas-ahead", [], True)


def test_exactly_one_item_is_prepared_before_it_is_wanted() -> None:
    source = Source()
    with Ahead(source(9)) as ahead:
        for number in range(4):
            assert source.begun.acquire(timeout=10)
            assert not source.begun.acquire(timeout=0.05), "no further one is begun"
            assert next(ahead) == number
    assert source.closed
    assert threads() == []
    assert len(source.read) <= 5


def test_an_error_comes_where_its_item_would_be() -> None:
    source = Source(fails_at=2)
    with Ahead(source(9)) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="2"):
                next(ahead)
    assert (source.closed, threads()) == (True, [])


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_nothing_is_left_when_the_reader_fails(taken: int) -> None:
    source = Source(seconds=0.01)

    def fail() -> None:
        with Ahead(source(9)) as ahead:
            for _ in range(taken):
                next(ahead)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (source.closed, threads()) == (True, [])
    assert len(source.read) <= taken + 1


def test_waiting_is_counted_and_reading_beside_the_work_is_not() -> None:
    source = Source(seconds=0.1)
    with Ahead(source(4)) as ahead:
        next(ahead)
        waited = ahead.waited
        assert 0.05 < waited < 5
        time.sleep(0.5)
        next(ahead)
        assert ahead.waited - waited < 0.05


def test_a_step_without_rows_has_a_pass_without_rows() -> None:
    """Two workers, 5 rows in steps of 4: 2 and 2 rows, then 0 and 1, as `Plan.share` divides them."""
    stored, plan = weighing.rows(5), Plan(np.array([5]), 4, 1, 1, 0)
    for rank, sizes in ((0, [1, 1, 0]), (1, [1, 1, 1])):
        task = Weighing()
        batches = Batches(weighing.dataset(task, stored), torch.device("cpu"), 0, rank)
        shares = ([(0, 2), (2, 4)][rank], (4, 5))
        feed = ({name: values[low:high] for name, values in stored.items()} for low, high in shares)
        passes = list(batches.passes(feed, plan, first=1, world=2, micro_batch=1))
        assert [len(one.batch.get("x", ())) for one in passes] == sizes
        assert [len(one.rows.get("x", ())) for one in passes] == [2, 2, sizes[-1]]
