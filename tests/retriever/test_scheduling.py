"""The queue: batches, turns, deadlines, the cache, and work that nobody waits for."""

import asyncio
import threading
import time

import pytest

from agentrl.retriever.errors import BadQuery, RetrieverUnavailable
from agentrl.retriever.metrics import COUNTERS, Metrics, shared_memory
from agentrl.retriever.scheduling import Overloaded, Scheduler
from tests.retriever.helpers import Fake


class Held(Fake):
    """Searches when it is let go, once for each `release`."""

    def __init__(self, seconds=0.0):
        super().__init__(quick=False)
        self.gate, self.seconds = threading.Semaphore(0), seconds

    def search_batch(self, queries, topk):
        assert self.gate.acquire(timeout=10)
        time.sleep(self.seconds)
        return super().search_batch(queries, topk)

    def release(self, times=1):
        for _ in range(times):
            self.gate.release()


def soon(seconds=10.0):
    return time.monotonic() + seconds


def texts(found):
    return [[hit.passage.text for hit in hits] for hits in found]


async def ticks(count=5):
    for _ in range(count):
        await asyncio.sleep(0.01)


def test_what_arrives_during_a_batch_is_the_next_one():
    async def run():
        held = Held()
        scheduler = Scheduler(held, cache=0)
        tasks = [asyncio.create_task(scheduler.search([q], 1, soon())) for q in "abcde"]
        await ticks(1)
        tasks += [asyncio.create_task(scheduler.search([q], 1, soon())) for q in "fgh"]
        await ticks()
        assert scheduler.waiting == 3
        held.release(2)
        found = await asyncio.gather(*tasks)
        assert [texts(f) for f in found] == [[[q]] for q in "abcdefgh"]
        return held.batches

    assert asyncio.run(run()) == [(list("abcde"), 1), (list("fgh"), 1)]


def test_requests_take_turns_and_a_batch_has_one_topk():
    async def run():
        held = Held()
        scheduler = Scheduler(held, max_batch=16, cache=0)
        first = asyncio.create_task(scheduler.search(["first"], 1, soon()))
        await ticks(1)
        big = asyncio.create_task(scheduler.search([f"big{i}" for i in range(40)], 1, soon()))
        await ticks(1)
        small = asyncio.create_task(scheduler.search(["small"], 1, soon()))
        other = asyncio.create_task(scheduler.search(["other"], 2, soon()))
        await ticks(1)
        held.release(10)
        await asyncio.gather(first, big, small, other)
        assert texts(big.result()) == [[f"big{i}"] for i in range(40)]
        return held.batches

    batches = asyncio.run(run())
    assert batches[0] == (["first"], 1)
    assert "small" in batches[1][0] and len(batches[1][0]) == 16  # not behind the forty
    assert all(len({topk}) == 1 for _, topk in batches) and (["other"], 2) in batches
    assert sum(len(queries) for queries, _ in batches) == 43


@pytest.mark.slow
def test_batches_grow_while_they_are_fast_and_shrink_while_they_are_slow():
    class Timed(Fake):
        cost = 0.001

        def search_batch(self, queries, topk):
            time.sleep(self.cost * len(queries))
            return super().search_batch(queries, topk)

    async def sizes(cost, size_now):
        timed = Timed(quick=False)
        timed.cost = cost
        scheduler = Scheduler(timed, cache=0)
        scheduler._size_now = size_now
        await scheduler.search([f"{i}" for i in range(300)], 1, soon())
        return [len(queries) for queries, _ in timed.batches]

    assert max(asyncio.run(sizes(0.0022, 8))[:-1]) > 8
    slow = asyncio.run(sizes(0.01, 64))
    assert slow[0] == 64 and set(slow[3:-1]) == {16}


def test_equal_queries_share_one_search_and_answers_are_kept():
    async def run():
        held = Held()
        scheduler = Scheduler(held, cache=2)
        tasks = [asyncio.create_task(scheduler.search(["  a \n b ", "a b"], 1, soon())) for _ in range(3)]
        await ticks()
        held.release()
        assert [texts(f) for f in await asyncio.gather(*tasks)] == [[["a b"], ["a b"]]] * 3
        assert texts(await scheduler.search(["a b"], 1, soon())) == [["a b"]]  # not searched again
        held.release(3)
        for query in ("c", "d", "a b"):  # the oldest answer was dropped for the third
            await scheduler.search([query], 1, soon())
        total = scheduler.metrics.total
        assert (total("cache_misses_total"), total("cache_hits_total"), total("coalesced_total")) == (4, 1, 5)
        return [queries for queries, _ in held.batches]

    assert asyncio.run(run()) == [["a b"], ["c"], ["d"], ["a b"]]


def test_a_deadline_that_passes_and_one_that_cannot_be_met():
    async def run():
        held = Held(0.05)
        scheduler = Scheduler(held, cache=0)
        held.release()
        await scheduler.search(["measured"], 1, soon())
        late = asyncio.create_task(scheduler.search(["late"], 1, soon(0.1)))
        await ticks(1)
        waiting = [asyncio.create_task(scheduler.search([f"w{i}"], 1, soon())) for i in range(20)]
        await ticks(1)
        begun = time.monotonic()
        with pytest.raises(Overloaded) as refused:  # 20 queries of 50 ms are ahead
            await scheduler.search(["hopeless"], 1, soon(0.3))
        assert time.monotonic() - begun < 0.1 and refused.value.retry_after_s >= 1
        with pytest.raises(Overloaded):
            await late
        held.release(30)
        await asyncio.gather(*waiting)  # whoever can wait is never refused
        return [q for queries, _ in held.batches for q in queries]

    asked = asyncio.run(run())
    assert "hopeless" not in asked and {f"w{i}" for i in range(20)} <= set(asked)


def test_the_queue_is_bounded():
    async def run():
        held = Held()
        scheduler = Scheduler(held, max_waiting=10, cache=0)
        first = asyncio.create_task(scheduler.search(["first"], 1, soon()))
        await ticks(1)
        full = asyncio.create_task(scheduler.search([str(i) for i in range(10)], 1, soon()))
        await ticks(1)
        with pytest.raises(Overloaded):
            await scheduler.search(["one more"], 1, soon())
        held.release(2)
        await asyncio.gather(first, full)
        held.release()
        await scheduler.search(["one more"], 1, soon())

    asyncio.run(run())


def test_work_that_nobody_waits_for_is_not_done():
    async def run():
        held = Held()
        scheduler = Scheduler(held, cache=0)
        first = asyncio.create_task(scheduler.search(["first"], 1, soon()))
        await ticks(1)
        gone = asyncio.create_task(scheduler.search(["gone", "shared"], 1, soon()))
        await ticks(1)
        stays = asyncio.create_task(scheduler.search(["shared", "mine"], 1, soon()))
        await ticks(1)
        gone.cancel()
        await ticks(1)
        held.release(3)
        await first
        assert texts(await stays) == [["shared"], ["mine"]]
        assert scheduler.waiting == 0
        return [q for queries, _ in held.batches for q in queries]

    assert sorted(asyncio.run(run())) == ["first", "mine", "shared"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_failure_reaches_each_waiter_and_the_next_request_works(quick):
    async def run():
        fake = Fake(RetrieverUnavailable("down"), quick=quick)
        scheduler = Scheduler(fake, max_batch=2)
        asked = [scheduler.search(q, 1, soon()) for q in (["a", "b", "c"], ["b"], ["a"])]
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(f) for f in failed} <= {RetrieverUnavailable} and len(failed) == 3
        fake.error = None
        assert texts(await scheduler.search(["a", "d"], 1, soon())) == [["a"], ["d"]]
        assert scheduler.waiting == 0

    asyncio.run(run())


def test_an_error_of_the_searcher_is_never_taken_for_a_deadline():
    async def run():
        with pytest.raises(TimeoutError):
            await Scheduler(Fake(TimeoutError("own"))).search(["a"], 1, soon())
        with pytest.raises(BadQuery):
            await Scheduler(Fake()).search(["a"], 0, soon())
        assert await Scheduler(Fake()).search([], 1, soon()) == []

        class Short(Fake):
            def search_batch(self, queries, topk):
                return []

        with pytest.raises(RuntimeError, match="0 lists for 1 queries"):
            await Scheduler(Short()).search(["a"], 1, soon())

    asyncio.run(run())


def test_many_requests_of_all_sorts_get_their_own_answers():
    """Some are cancelled, some have short deadlines; each answer belongs to its query, and nothing stays behind."""

    async def run():
        import random

        rng = random.Random(0)

        class Slow(Fake):
            def search_batch(self, queries, topk):
                time.sleep(0.001)
                return super().search_batch(queries, topk)

        scheduler = Scheduler(Slow(quick=False), max_batch=8, cache=50)

        async def ask(number):
            queries = [f"q{rng.randrange(200)}" for _ in range(rng.randrange(1, 6))]
            topk = rng.randrange(1, 3)
            await asyncio.sleep(rng.random() * 0.2)
            task = asyncio.create_task(scheduler.search(queries, topk, soon(rng.choice([0.01, 5]))))
            if rng.random() < 0.2:
                await asyncio.sleep(0.005)
                task.cancel()
            try:
                assert texts(await task) == [[q] * topk for q in queries]
                return 1
            except (Overloaded, asyncio.CancelledError):
                return 0

        answered = sum(await asyncio.gather(*(ask(i) for i in range(400))))
        await ticks(3)
        assert scheduler.waiting == 0 and not scheduler._waiters and not scheduler._queue
        return answered

    assert asyncio.run(run()) > 120  # two in five have time and are not cancelled, however busy the machine


def test_metrics_are_prometheus_text_over_all_replicas():
    memory = shared_memory(2)
    first, second = Metrics(memory, 0), Metrics(memory, 1)
    first.add("requests_total", 2)
    second.add("requests_total")
    second.set("waiting_queries", 7)
    for seconds in (0.0005, 0.3, 99):
        first.latency(seconds)
    text = second.render().decode()
    lines = text.splitlines()
    assert "agentrl_retriever_requests_total 3" in lines and "agentrl_retriever_waiting_queries 7" in lines
    assert "agentrl_retriever_replicas 2" in lines
    assert 'agentrl_retriever_request_seconds_bucket{le="0.5"} 2' in lines
    assert 'agentrl_retriever_request_seconds_bucket{le="+Inf"} 3' in lines
    assert "agentrl_retriever_request_seconds_count 3" in lines
    for name in COUNTERS:
        assert f"# TYPE agentrl_retriever_{name} counter" in lines
    Metrics(memory, 1)  # started anew
    assert first.total("waiting_queries") == 0 and first.total("requests_total") == 3
