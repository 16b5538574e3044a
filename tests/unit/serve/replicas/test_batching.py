"""Rows that come together are computed together, and each gets its own answer."""

import asyncio
import threading
import time

import pytest

from maas_ray.serve.replicas.batching import Batcher


def test_a_batch_is_computed_when_full_or_after_the_waiting_time() -> None:
    sizes: list[int] = []

    def double(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        time.sleep(0.02)
        return [2 * row for row in rows]

    async def scenario() -> None:
        batches = Batcher(double, size=4, wait_s=0.2)
        began = time.monotonic()
        assert await asyncio.gather(*(batches(n) for n in range(8))) == [2 * n for n in range(8)]
        assert time.monotonic() - began < 0.2  # full ones do not wait
        assert await batches(5) == 10
        assert time.monotonic() - began > 0.2
        assert sizes == [4, 4, 1]
        batches.close()

    asyncio.run(scenario())


def test_rows_that_waited_for_a_batch_are_computed_at_once() -> None:
    sizes: list[int] = []
    go = threading.Event()

    def held(rows: list[int]) -> list[int]:
        sizes.append(len(rows))
        go.wait(5)
        return rows

    async def scenario() -> None:
        batches = Batcher(held, size=2, wait_s=0.05)
        asked = [asyncio.create_task(batches(n)) for n in range(2)]
        await asyncio.sleep(0.01)
        asked += [asyncio.create_task(batches(2))]
        left = asyncio.create_task(batches(9))
        await asyncio.sleep(0.1)
        left.cancel()  # before it was taken: it is not computed
        go.set()
        assert await asyncio.gather(*asked) == [0, 1, 2]
        assert sizes == [2, 1]
        batches.close()

    asyncio.run(scenario())


def test_a_batch_that_fails_fails_its_rows_and_no_others() -> None:
    def compute(rows: list[int]) -> list[int]:
        if -1 in rows:
            raise ZeroDivisionError("by zero")
        return rows

    async def scenario() -> None:
        batches = Batcher(compute, size=1, wait_s=0)
        first, second = await asyncio.gather(batches(-1), batches(1), return_exceptions=True)
        assert isinstance(first, ZeroDivisionError)
        assert second == 1
        with pytest.raises(ZeroDivisionError):
            await batches(-1)
        batches.close()

    asyncio.run(scenario())


def test_many_waiting_rows_are_not_copied_for_every_batch() -> None:
    async def scenario(rows: int) -> float:
        batches = Batcher(lambda batch: batch, size=16, wait_s=0)
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in range(rows)]
        batches._rows.extend((row, answer, 0.0) for row, answer in enumerate(answers))
        began = time.process_time()
        await batches._work()
        took = time.process_time() - began
        assert [answer.result() for answer in answers] == list(range(rows))
        batches.close()
        return took

    few, many = (asyncio.run(scenario(rows)) for rows in (4_000, 64_000))
    assert many < 64 * few + 0.5  # 16 times the rows; quadratic work would be 256 times
