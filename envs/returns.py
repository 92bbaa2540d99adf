"""Results of threads on their way to an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Returns] = weakref.WeakKeyDictionary()


def on_thread(executor: Executor, call: Callable[[], T]) -> asyncio.Future[T]:
    """As `loop.run_in_executor`, with fewer system calls where many end at the same time."""
    loop = asyncio.get_running_loop()
    if (returns := _of_loop.get(loop)) is None:
        returns = _of_loop[loop] = Returns()
    return returns.submit(executor, call)


class Returns:
    """Results on their way from threads to one loop.

    Those that arrive together wake it once, because waking is a system call.
    """

    def __init__(self) -> None:
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken: asyncio.AbstractEventLoop | None = None

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """Called from any thread."""
        self._done.append((future, result, error))
        loop = future.get_loop()
        if self._woken is not loop:  # two threads may both see this: the loop is then woken once too often
            self._woken = loop
            with suppress(RuntimeError):  # the loop was closed while the tool was busy
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = None  # before looking: what comes later wakes the loop again
        while self._done:
            future, result, error = self._done.popleft()
            if future.done():  # cancelled meanwhile: nobody waits
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):  # a future cannot carry it
                future.set_exception(RuntimeError("the environment raised StopIteration"))
            else:
                future.set_exception(error)

    def submit(self, executor: Executor, call: Callable[[], T]) -> asyncio.Future[T]:
        """A future of the running loop for what `call` returns on a thread; one that nobody awaits is not begun."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = call()
            except BaseException as error:
                self.put(future, None, error)
            else:
                self.put(future, result, None)

        executor.submit(work)
        return future
