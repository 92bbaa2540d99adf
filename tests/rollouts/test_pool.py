import asyncio
import threading
import time

import gymnasium
import pytest

from agentrl.rollouts.pool import EnvPool
from tests.rollouts.worlds import Awaitable, Blocking

TASK = {"question": "who?"}


async def episode(handle):
    await handle.reset(seed=0, options=TASK)
    while not (await handle.step("<search> x </search>"))[2]:
        pass


@pytest.mark.parametrize("env", [Blocking, Awaitable])
def test_environments_are_reused(env):
    with EnvPool(env) as pool:
        for _ in range(3):
            a, b = pool.take(), pool.take()
            for handle in (a, b):
                pool.run(episode(handle))
                pool.give(handle)
        assert pool.made == 2
        assert a.env.resets + b.env.resets == 6
    assert a.env.closed
    assert b.env.closed


def test_a_blocking_environment_stays_on_one_thread_of_its_own():
    class Where(Blocking):
        def reset(self, **kwargs):
            self.threads = {threading.get_ident()}
            return super().reset(**kwargs)

        def step(self, action):
            self.threads.add(threading.get_ident())
            return super().step(action)

    with EnvPool(Where) as pool:
        a, b = pool.take(), pool.take()
        for handle in (a, b, a, b):
            pool.run(episode(handle))
        assert len(a.env.threads) == len(b.env.threads) == 1
        assert len(a.env.threads | b.env.threads | {threading.get_ident()}) == 3
        pool.give(a)
        pool.give(b)


def test_an_environment_that_hangs_is_given_up_and_replaced():
    released = threading.Event()

    class Hanging(Blocking):
        def step(self, action):
            released.wait(30)
            return super().step(action)

    async def give_up(handle):
        await handle.reset(seed=0, options=TASK)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await handle.step("x")

    start = time.perf_counter()
    with EnvPool(Hanging) as pool:
        handle = pool.take()
        pool.run(give_up(handle))
        assert handle.abandoned
        pool.give(handle)
        assert pool.take() is not handle
        assert pool.made == 2
    assert time.perf_counter() - start < 15
    released.set()
    for _ in range(1000):  # its own thread closes it as soon as it comes back
        if handle.env.closed:
            break
        time.sleep(0.01)
    assert handle.env.closed


def test_threads_end_with_the_pool():
    before = threading.active_count()
    with EnvPool(Blocking) as pool:
        handles = [pool.take() for _ in range(5)]
        for handle in handles:
            pool.run(episode(handle))
        assert threading.active_count() == before + 5
        for handle in handles:
            pool.give(handle)
    assert threading.active_count() == before


def test_exceptions_cross_from_the_thread():
    class Broken(Blocking):
        def step(self, action):
            raise LookupError("inside") if action == "a" else StopIteration

    async def main(handle):
        await handle.reset(seed=0, options=TASK)
        with pytest.raises(LookupError, match="inside"):
            await handle.step("a")
        with pytest.raises(RuntimeError, match="StopIteration"):
            await handle.step("b")

    with EnvPool(Broken) as pool:
        handle = pool.take()
        pool.run(main(handle))
        pool.give(handle)


def test_wrapped_and_registered_environments():
    gymnasium.register("tests/Waiting-v0", entry_point="tests.rollouts.worlds:Awaitable", max_episode_steps=5)
    with EnvPool(lambda: gymnasium.make("tests/Waiting-v0", disable_env_checker=True, turns=2)) as pool:
        handle = pool.take()
        assert handle.id == "tests/Waiting-v0"
        assert handle.stop_strings == ("</search>", "</answer>")
        pool.run(episode(handle))
        assert handle.env.unwrapped.step_number == 2
        pool.give(handle)


def test_the_loop_is_kept_between_runs():
    async def loop():
        return asyncio.get_running_loop()

    with EnvPool(Blocking) as pool:
        assert pool.run(loop()) is pool.run(loop()) is pool.loop


def test_connections_of_asynchronous_environments_are_closed_on_the_loop():
    closed_on = []

    class Connected(Awaitable):
        async def aclose(self):
            closed_on.append(asyncio.get_running_loop())

    with EnvPool(Connected) as pool:
        handle = pool.take()
        pool.run(episode(handle))
        pool.give(handle)
        loop = pool.loop
    assert closed_on == [loop]
