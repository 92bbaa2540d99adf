"""Results of threads on their way to event loops: order, errors, several loops at once, what nobody waits for."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentrl.envs.returns import Returns, on_thread


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(64) as pool:
        yield pool


def test_many_results_wake_the_loop_few_times(threads):
    together = threading.Barrier(50)

    async def play():
        loop, woken = asyncio.get_running_loop(), []
        waking = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a, **k: (woken.append(1), waking(*a, **k))[1]
        time_to_arrive = [on_thread(threads, lambda n=n: (together.wait(10), n)[1]) for n in range(50)]
        time.sleep(0.05)  # all of them are back before the loop looks
        return await asyncio.gather(*time_to_arrive), len(woken)

    found, woken = asyncio.run(play())
    assert found == list(range(50)) and woken < 25


def test_errors_arrive_and_a_stop_iteration_does_not_hang(threads):
    def fails(error):
        raise error

    async def play(error):
        return await on_thread(threads, lambda: fails(error))

    with pytest.raises(KeyError):
        asyncio.run(play(KeyError("x")))
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(play(StopIteration()))


def test_loops_of_several_threads_keep_their_results(threads):
    """One loop is busy when its result comes; another one's must not touch it. Debug mode sees that."""
    waiting, went_on = threading.Event(), threading.Event()

    async def busy():
        future = on_thread(threads, lambda: "a")
        future.add_done_callback(lambda _: None)  # which the loop alone may schedule
        waiting.set()
        assert went_on.wait(10)  # the loop stands still
        return await future

    async def other():
        waiting.wait(10)
        time.sleep(0.05)
        try:
            return await asyncio.wait_for(on_thread(threads, lambda: "b"), 10)
        finally:
            went_on.set()

    with ThreadPoolExecutor(2) as loops:
        a, b = (loops.submit(asyncio.run, play(), debug=True) for play in (busy, other))
        assert (a.result(20), b.result(20)) == ("a", "b")


def test_what_was_given_up_before_it_began_is_not_begun():
    begun = []
    with ThreadPoolExecutor(1) as one:

        async def play():
            first = on_thread(one, lambda: time.sleep(0.05))
            second = on_thread(one, lambda: begun.append(1))
            second.cancel()
            await first

        asyncio.run(play())
    assert begun == []


def test_a_loop_that_was_closed_meanwhile_is_no_error():
    returns = Returns()
    with ThreadPoolExecutor(1) as one:

        async def play():
            returns.submit(one, lambda: time.sleep(0.05))

        asyncio.run(play())
