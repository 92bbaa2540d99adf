"""Playing the next steps' episodes while this step trains, at most `depth` steps ahead, on one thread of its own.

With depth 0 everything happens in the caller's thread and nothing is ahead.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Ahead(Generic[T]):
    """`collect(n)` plays step n; `position()` is the state of the questions drawn so far; steps end before `last`."""

    def __init__(
        self, collect: Callable[[int], T], position: Callable[[], dict[str, Any]], *, depth: int, last: int
    ) -> None:
        self._collect, self._position, self.depth, self._last = collect, position, depth, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if depth else None
        self._pending: dict[int, Future[T]] = {}
        self._began_at: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def take(self, n: int) -> T:
        """Step n's episodes; the next steps are begun before this returns."""
        if self._thread is None:
            return self._collect(n)
        self._submit(n)
        result = self._pending[n].result()
        with self._lock:
            del self._pending[n], self._began_at[n]
        for k in range(n + 1, min(n + 1 + self.depth, self._last)):
            self._submit(k)
        return result

    def run(self, call: Callable[[], R]) -> R:
        """Something else with the same environments: after what is being played has ended."""
        return call() if self._thread is None else self._thread.submit(call).result()

    def position(self) -> dict[str, Any]:
        """The state of the questions without those of steps that nobody has taken: what a checkpoint needs."""
        with self._lock:
            began = [self._began_at[n] for n in sorted(self._pending) if n in self._began_at]
            return began[0] if began else copy.deepcopy(self._position())

    def close(self) -> None:
        """Wait for what is being played; drop the rest."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, n: int) -> None:
        with self._lock:
            if n not in self._pending:
                assert self._thread is not None
                self._pending[n] = self._thread.submit(self._play, n)

    def _play(self, n: int) -> T:
        with self._lock:
            self._began_at[n] = copy.deepcopy(self._position())
        return self._collect(n)
