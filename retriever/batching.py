"""One batched call for the searches that many episodes ask for at the same moment."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence

from agentrl.retriever.base import Hit, Searcher, check_request

_Waiting = dict[int, dict[str, list[asyncio.Future[list[Hit]]]]]  # topk → query → who waits for it


class MicroBatcher:
    """Collects the searches of one tick of the event loop, or of `window_s` seconds, into one call per `topk`.

    Equal queries are searched once. A searcher with `asearch_batch` is awaited; one that says it is `quick` is called
    in place; any other in a thread, so that a slow one never holds up the loop. Works from several event loops.
    """

    def __init__(self, searcher: Searcher, *, window_s: float = 0.0) -> None:
        self._searcher = searcher
        self._window_s = window_s
        self._waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting] = weakref.WeakKeyDictionary()
        self._running: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references to tasks

    async def search(self, query: str, topk: int) -> list[Hit]:
        """At most `topk` passages for `query`. A failure of the batch is raised to each who waits for it.

        The list is the caller's own. Cancelling one waiter leaves the others alone.
        """
        check_request((query,), topk)
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = {}
            if self._window_s > 0:
                loop.call_later(self._window_s, self._flush, loop)
            else:
                loop.call_soon(self._flush, loop)
        future: asyncio.Future[list[Hit]] = loop.create_future()
        waiting.setdefault(topk, {}).setdefault(query, []).append(future)
        return await future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        for topk, waiters in self._waiting.pop(loop).items():
            wanted = {query: alive for query, all_ in waiters.items() if (alive := [f for f in all_ if not f.done()])}
            if not wanted:
                continue
            if getattr(self._searcher, "quick", False) and not hasattr(self._searcher, "asearch_batch"):
                try:
                    _deliver(wanted, self._searcher.search_batch(list(wanted), topk))
                except Exception as error:
                    _fail(wanted, error)
            else:
                task = loop.create_task(self._call(wanted, topk))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _call(self, wanted: dict[str, list[asyncio.Future[list[Hit]]]], topk: int) -> None:
        try:
            search = getattr(self._searcher, "asearch_batch", None)
            if search is not None:
                found = await search(list(wanted), topk)
            else:
                found = await asyncio.to_thread(self._searcher.search_batch, list(wanted), topk)
            _deliver(wanted, found)
        except asyncio.CancelledError:  # the loop is being shut down: nobody may be left waiting
            for future in _all(wanted):
                future.cancel()
            raise
        except Exception as error:
            _fail(wanted, error)


def _deliver(wanted: dict[str, list[asyncio.Future[list[Hit]]]], found: Sequence[list[Hit]]) -> None:
    if len(found) != len(wanted):
        raise RuntimeError(f"the searcher gave {len(found)} lists for {len(wanted)} queries")
    for futures, hits in zip(wanted.values(), found):
        for future in futures:
            if not future.done():
                future.set_result(list(hits))


def _fail(wanted: dict[str, list[asyncio.Future[list[Hit]]]], error: Exception) -> None:
    for future in _all(wanted):
        if not future.done():
            future.set_exception(error)


def _all(wanted: dict[str, list[asyncio.Future[list[Hit]]]]) -> list[asyncio.Future[list[Hit]]]:
    return [future for futures in wanted.values() for future in futures]
