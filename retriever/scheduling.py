"""The queue between requests and the index: micro-batches, deadlines, fairness, a cache, one search for equal queries.

All of it lives on one event loop; only the search itself runs in a thread, or in place where it takes a moment. While a
batch is being searched the next one gathers, so that its size follows the load and nobody waits for company; it is
bounded so that one batch takes about `BATCH_S`. Requests take turns, `_TURN` queries at a time: a rollout's thousand
queries do not hold up another's one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agentrl.retriever.base import Hit, Searcher, check_request, tidy
from agentrl.retriever.metrics import Metrics

BATCH_S = 0.1
"""About how long one batch may take."""

_IN_PLACE_S = 0.004  # a batch that takes less runs on the event loop: a thread would cost as much
_LEAST_BATCH = 16  # however slow: of fewer an encoder cannot make groups of like length
_TURN = 8  # queries of one request in a row
_MEMORY = 0.8  # of the running mean of a query's cost
_CACHED_TOPK = 32

_Key = tuple[str, int]


class Overloaded(Exception):
    """The deadline cannot be met; `retry_after_s` says when there should be room."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests: try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class _Request:
    """The queries of one request: their hits, and how many are missing."""

    def __init__(self, keys: Sequence[_Key], future: asyncio.Future[list[list[Hit]]]) -> None:
        self.found: list[list[Hit]] = [[] for _ in keys]
        self.missing, self.future = len(keys), future
        self.todo: deque[_Key] = deque()

    def give(self, position: int, hits: list[Hit]) -> None:
        self.found[position] = hits
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(self.found)


class Scheduler:
    """Answers requests from one searcher. Make it and use it on one event loop."""

    def __init__(
        self,
        searcher: Searcher,
        *,
        max_batch: int = 64,
        max_waiting: int = 65_536,
        cache: int = 8_192,
        metrics: Metrics | None = None,
    ) -> None:
        """`max_batch` queries at most are searched together, `max_waiting` wait, the answers to `cache` are kept."""
        self._searcher, self._max_batch, self._max_waiting, self._cache_size = searcher, max_batch, max_waiting, cache
        self.metrics = metrics or Metrics()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._queue: deque[_Request] = deque()
        self._waiters: dict[_Key, list[tuple[_Request, int]]] = {}  # also of the batch being searched
        self._cached: OrderedDict[_Key, list[Hit]] = OrderedDict()
        self._waiting = 0  # queries in the queue
        self._query_s: float | None = None  # running mean of what a query costs
        self._size_now = max_batch
        self._quick = bool(getattr(searcher, "quick", False))
        self._in_thread = bool(getattr(searcher, "in_thread", False))  # it blocks: never on the event loop
        self._busy = False

    @property
    def waiting(self) -> int:
        """Queries that wait."""
        return self._waiting

    @property
    def in_place(self) -> bool:
        """Whether searches run on the event loop, within microseconds to a few milliseconds."""
        return not self._in_thread and (self._quick or self._fast)

    @property
    def _fast(self) -> bool:
        return self._query_s is not None and self._query_s < _IN_PLACE_S / 2

    async def search(self, queries: Sequence[str], topk: int, deadline: float) -> list[list[Hit]]:
        """The hits of each query before `deadline` (`time.monotonic`), or `Overloaded`; or what the searcher raises.

        The lists are shared with other requests: do not change them. Cancelling drops what nobody else waits for.
        """
        check_request(queries, topk)
        loop = asyncio.get_running_loop()
        keys = [(tidy(query), topk) for query in queries]
        request = _Request(keys, loop.create_future())
        if not keys:
            return []
        self._admit(keys, deadline)
        for position, key in enumerate(keys):
            self._enter(request, position, key)
        if request.missing:
            if request.todo:
                self._queue.append(request)
            if not self._busy:
                self._busy = True
                loop.call_soon(self._next)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await request.future
        except TimeoutError:
            if request.future.done() and not request.future.cancelled():
                return request.future.result()  # it came in the same moment; or raises the searcher's own TimeoutError
            raise Overloaded(self._retry_after()) from None
        finally:
            request.future.cancel()

    def close(self) -> None:
        """End the thread once its batch is done."""
        self._pool.shutdown(wait=False)

    def _admit(self, keys: Sequence[_Key], deadline: float) -> None:
        new = sum(key not in self._cached for key in keys)
        ahead = min(self._waiting, (_TURN * len(self._queue) + self._max_batch) * max(1, len(keys) // _TURN))
        expected = (self._query_s or 0.0) * (ahead + new)
        late = new and self._waiting and time.monotonic() + expected > deadline
        if late or (new and self._waiting + new > self._max_waiting):
            raise Overloaded(self._retry_after())

    def _retry_after(self) -> float:
        return max(1.0, (self._query_s or 0.0) * self._waiting)

    def _enter(self, request: _Request, position: int, key: _Key) -> None:
        cached = self._cached.get(key)
        if cached is not None:
            self._cached.move_to_end(key)
            self.metrics.add("cache_hits_total")
            request.give(position, cached)
            return
        waiters = self._waiters.get(key)
        if waiters is not None:
            self.metrics.add("coalesced_total")
            waiters.append((request, position))
            return
        self._waiters[key] = [(request, position)]
        request.todo.append(key)
        self._count(1)

    def _count(self, change: int) -> None:
        self._waiting += change
        self.metrics.set("waiting_queries", self._waiting)

    def _next(self) -> None:
        """Search the next batch; ends when nobody waits."""
        while batch := self._gather():
            topk = batch[0][1]
            queries = [query for query, _ in batch]
            begun = time.monotonic()
            if self.in_place:
                try:
                    found = self._searcher.search_batch(queries, topk)
                except Exception as error:
                    self._fail(batch, error)
                else:
                    self._deliver(batch, found, time.monotonic() - begun)
                if self._queue:
                    asyncio.get_running_loop().call_soon(self._next)  # requests that arrived meanwhile are read first
                    return
                continue
            future = asyncio.get_running_loop().run_in_executor(self._pool, self._searcher.search_batch, queries, topk)
            future.add_done_callback(lambda done, batch=batch, begun=begun: self._done(batch, done, begun))  # type: ignore[misc]
            return
        self._busy = False

    def _done(self, batch: list[_Key], done: asyncio.Future[list[list[Hit]]], begun: float) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            self._deliver(batch, done.result(), time.monotonic() - begun)
        else:
            self._fail(batch, error)
        self._next()

    def _size(self) -> int:
        if self._query_s and self.in_place and not self._quick:
            return max(1, min(self._size_now, int(_IN_PLACE_S / self._query_s)))
        return self._size_now

    def _adapt(self, queries: int, seconds: float) -> None:
        """Halve batches that take more than twice `BATCH_S`, double full ones that take less than it."""
        if seconds > 2 * BATCH_S and queries > _LEAST_BATCH:
            self._size_now = max(_LEAST_BATCH, queries // 2)
        elif seconds < BATCH_S and queries >= self._size_now:
            self._size_now = min(self._max_batch, 2 * self._size_now)

    def _gather(self) -> list[_Key]:
        """The next batch, of one topk, without what nobody waits for any more."""
        batch: list[_Key] = []
        size, passed = self._size(), 0
        while self._queue and len(batch) < size and passed < len(self._queue):
            request = self._queue.popleft()
            for _ in range(min(_TURN, len(request.todo), size - len(batch))):
                key = request.todo[0]
                if batch and key[1] != batch[0][1]:
                    break
                request.todo.popleft()
                self._count(-1)
                if self._wanted(key):
                    batch.append(key)
            else:
                passed = -1
            passed += 1
            if request.todo:
                self._queue.append(request)
        return batch

    def _wanted(self, key: _Key) -> bool:
        waiters = self._waiters[key] = [(r, p) for r, p in self._waiters[key] if not r.future.done()]
        if not waiters:
            del self._waiters[key]
        return bool(waiters)

    def _deliver(self, batch: list[_Key], found: Sequence[list[Hit]], seconds: float) -> None:
        if len(found) != len(batch):
            return self._fail(batch, RuntimeError(f"the searcher gave {len(found)} lists for {len(batch)} queries"))
        self._adapt(len(batch), seconds)
        cost = seconds / len(batch)
        self._query_s = cost if self._query_s is None else _MEMORY * self._query_s + (1 - _MEMORY) * cost
        for name, amount in (
            ("batches_total", 1),
            ("batched_queries_total", len(batch)),
            ("search_seconds_total", seconds),
        ):
            self.metrics.add(name, amount)
        self.metrics.add("cache_misses_total", len(batch))
        for key, hits in zip(batch, found):
            if self._cache_size and key[1] <= _CACHED_TOPK:
                self._cached[key] = hits
                if len(self._cached) > self._cache_size:
                    self._cached.popitem(last=False)
            for request, position in self._waiters.pop(key, ()):
                request.give(position, hits)

    def _fail(self, batch: list[_Key], error: BaseException) -> None:
        for key in batch:
            for request, _ in self._waiters.pop(key, ()):
                if not request.future.done():
                    request.future.set_exception(error)
                self._forget(request)

    def _forget(self, request: _Request) -> None:
        """Drop the rest of a request that failed; equal queries of others are taken over by them."""
        for key in request.todo:
            self._count(-1)
            if self._wanted(key):
                heir = self._waiters[key][0][0]
                heir.todo.append(key)
                self._count(1)
                if heir not in self._queue:
                    self._queue.append(heir)
        request.todo.clear()
