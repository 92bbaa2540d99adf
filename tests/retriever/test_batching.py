import asyncio
import threading
import time

import pytest

from agentrl.retriever.batching import MicroBatcher
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import BadQuery, RetrieverUnavailable
from tests.retriever.helpers import Fake, raw_server, respond


def texts(hits):
    return [hit.passage.text for hit in hits]


def test_one_tick_is_one_call_per_topk_and_equal_queries_are_searched_once():
    fake = Fake()
    batcher = MicroBatcher(fake)

    async def episodes():
        asked = [("a", 1), ("b", 1), ("a", 1), ("a", 2)]
        return await asyncio.gather(*(batcher.search(query, topk) for query, topk in asked))

    found = asyncio.run(episodes())
    assert [texts(hits) for hits in found] == [["a"], ["b"], ["a"], ["a", "a"]]
    assert fake.batches == [(["a", "b"], 1), (["a"], 2)]
    assert found[0] == found[2] and found[0] is not found[2]
    assert set(fake.threads) == {threading.main_thread().name}
    assert asyncio.run(episodes()) == found  # on another event loop


def test_a_window_collects_over_several_ticks():
    fake = Fake()

    async def episodes():
        batcher = MicroBatcher(fake, window_s=0.5)
        first = asyncio.create_task(batcher.search("a", 1))
        await asyncio.sleep(0.02)
        return texts(await batcher.search("b", 1)), texts(await first)

    assert asyncio.run(episodes()) == (["b"], ["a"])
    assert fake.batches == [(["a", "b"], 1)]


def test_a_slow_searcher_runs_in_a_thread_and_never_blocks_the_loop():
    class Slow(Fake):
        def search_batch(self, queries, topk):
            time.sleep(0.2)
            return super().search_batch(queries, topk)

    fake = Slow(quick=False)

    async def episodes():
        searching = asyncio.create_task(MicroBatcher(fake).search("a", 1))
        ticks = 0
        while not searching.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, texts(await searching)

    ticks, found = asyncio.run(episodes())
    assert ticks >= 2 and found == ["a"]
    assert fake.threads != [threading.main_thread().name]


@pytest.mark.parametrize("quick", [True, False])
def test_an_error_reaches_each_waiter_and_the_next_call_works(quick):
    fake = Fake(RetrieverUnavailable("down"), quick=quick)
    batcher = MicroBatcher(fake)

    async def episodes():
        failed = await asyncio.gather(*(batcher.search(q, 1) for q in "aab"), return_exceptions=True)
        fake.error = None
        return failed, texts(await batcher.search("c", 1))

    failed, found = asyncio.run(episodes())
    assert [type(error) for error in failed] == [RetrieverUnavailable] * 3
    assert found == ["c"] and len(fake.batches) == 2


@pytest.mark.parametrize("quick", [True, False])
def test_cancelling_one_waiter_leaves_the_others(quick):
    fake = Fake(quick=quick)
    batcher = MicroBatcher(fake)

    async def episodes():
        tasks = [asyncio.create_task(batcher.search(query, 1)) for query in ("a", "a", "b", "c")]
        await asyncio.sleep(0) if quick else None
        tasks[0].cancel()
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third, fourth = asyncio.run(episodes())
    assert isinstance(first, asyncio.CancelledError) and isinstance(third, asyncio.CancelledError)
    assert texts(second) == ["a"] and texts(fourth) == ["c"]
    assert fake.batches == [(["a", "c"], 1)]  # nobody waits for b any more


def test_cancelled_while_the_call_is_under_way():
    release = threading.Event()

    class Held(Fake):
        def search_batch(self, queries, topk):
            assert release.wait(10)
            return super().search_batch(queries, topk)

    async def episodes():
        batcher = MicroBatcher(Held(quick=False))
        tasks = [asyncio.create_task(batcher.search(query, 1)) for query in ("a", "b")]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second = asyncio.run(episodes())
    assert isinstance(first, asyncio.CancelledError) and texts(second) == ["b"]


def test_a_searcher_that_loses_a_list_is_a_bug_that_surfaces():
    class Short(Fake):
        def search_batch(self, queries, topk):
            return []

    with pytest.raises(RuntimeError, match="0 lists for 1 queries"):
        asyncio.run(asyncio.wait_for(MicroBatcher(Short()).search("a", 1), 5))


def test_bad_arguments_are_the_callers_own():
    async def episodes():
        batcher = MicroBatcher(Fake())
        return await asyncio.gather(batcher.search("a", 0), batcher.search("b", 1), return_exceptions=True)

    bad, good = asyncio.run(episodes())
    assert isinstance(bad, BadQuery) and texts(good) == ["b"]


def test_over_http_many_episodes_are_one_request_awaited_on_the_loop():
    hit = b'[{"document": {"id": 1, "contents": "x"}, "score": 1}]'
    with raw_server(lambda c, _: respond(c, b'{"result": [' + b",".join([hit] * 50) + b"]}")) as (url, seen):
        batcher = MicroBatcher(RetrieverClient(url))

        async def episodes():
            return await asyncio.gather(*(batcher.search(f"query {n}", 1) for n in range(50)))

        assert [texts(hits) for hits in asyncio.run(episodes())] == [["x"]] * 50
        assert len(seen) == 1
