"""Time in a queue does not count against a time limit; an episode's own time does."""

import asyncio
import time

import pytest

from agentrl.envs.waiting import time_limit, uncounted


async def within(limit_s, *pieces):
    """Sleep each (seconds, counted) piece inside a limit."""
    async with time_limit(limit_s):
        for seconds, counted in pieces:
            if counted:
                await asyncio.sleep(seconds)
            else:
                with uncounted():
                    await asyncio.sleep(seconds)


def test_only_counted_time_meets_the_limit():
    asyncio.run(within(0.2, (0.05, True), (0.5, False), (0.05, True)))
    with pytest.raises(TimeoutError):
        asyncio.run(within(0.2, (0.5, False), (0.5, True)))
    with pytest.raises(TimeoutError):
        asyncio.run(within(0.2, (0.15, True), (0.3, False), (0.15, True)))  # what was used before is still used


def test_uncounted_inside_uncounted_and_without_a_limit():
    async def nested():
        with uncounted():
            await asyncio.sleep(0)
        async with time_limit(0.1):
            with uncounted():
                with uncounted():
                    await asyncio.sleep(0.15)
                await asyncio.sleep(0.15)

    asyncio.run(nested())


def test_limits_of_tasks_side_by_side_do_not_meet():
    async def both():
        waits = asyncio.create_task(within(0.1, (0.4, False)))
        counts = asyncio.create_task(within(0.1, (0.4, True)))
        await waits
        with pytest.raises(TimeoutError):
            await counts

    began = time.perf_counter()
    asyncio.run(both())
    assert time.perf_counter() - began < 5
