"""One timer for many waits."""

import asyncio
from contextlib import closing

import pytest

from maas_ray.serve.deadline import Deadline


def test_it_ends_the_wait_during_which_it_comes_and_those_after() -> None:
    async def run() -> None:
        with closing(Deadline(0.05)) as deadline:
            with deadline:
                await asyncio.sleep(0.001)
            with pytest.raises(TimeoutError), deadline:
                await asyncio.sleep(5)
            assert asyncio.current_task().cancelling() == 0
            with pytest.raises(TimeoutError), deadline:
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # nothing is left of it

    asyncio.run(run())


def test_it_leaves_a_task_alone_that_does_not_wait() -> None:
    async def run() -> None:
        with closing(Deadline(0.02)) as deadline:
            with deadline:
                pass
            await asyncio.sleep(0.05)
        with closing(Deadline(0.02)) as deadline, deadline:
            pass
        await asyncio.sleep(0.05)

    asyncio.run(run())


def test_waits_may_be_in_different_tasks() -> None:
    async def run() -> None:
        deadline = Deadline(0.05)

        async def wait(seconds: float) -> str:
            with deadline:
                await asyncio.sleep(seconds)
            return "done"

        assert await asyncio.create_task(wait(0.001)) == "done"
        with pytest.raises(TimeoutError):
            await asyncio.create_task(wait(5))

    asyncio.run(run())


def test_a_cancellation_by_another_is_not_a_timeout() -> None:
    async def run() -> None:
        async def wait() -> None:
            with closing(Deadline(0.02)) as deadline, deadline:
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.05)  # it comes while the task is cleaning up
                    raise

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
