"""The servers of one client: which to ask next, and which to leave alone for a while.

Each url has a circuit breaker: after `FAILURES` failures in a row it is not asked for `OPEN_S` seconds, doubled at each
further failure up to `MOST_OPEN_S`; then one request tries it. Among the others the one with the fewest requests under
way is asked, and of those the one that answered fastest lately.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

FAILURES = 5
OPEN_S, MOST_OPEN_S = 0.5, 10.0
_REMEMBERED = 200  # latencies, for the p95
_NEEDED = 20  # of them before there is one
_MEMORY = 0.8  # of the running mean of a url's latency


class Endpoint:
    """One url and what is known of its health."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.under_way = 0
        self.failures = 0
        self.problem = ""  # of the latest failure, until it answers
        self.latency_s = 0.0
        self.open_until = 0.0
        self.trying = False  # one request tries an open circuit


class Endpoints:
    """All urls of a client. Safe to use from several threads."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._clock, self._lock = clock, threading.Lock()
        self._turn = itertools.count()
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    def take(self, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The one to ask now, not one of `avoid` where there is another; `None` while all circuits are open."""
        with self._lock:
            now, turn = self._clock(), next(self._turn)
            ready = [e for e in self.all if e.failures < FAILURES or (now >= e.open_until and not e.trying)]
            ready = [e for e in ready if e not in avoid] or ready
            if not ready:
                return None
            start = turn % len(ready)
            chosen = min(ready[start:] + ready[:start], key=lambda e: (e.failures > 0, e.under_way, e.latency_s))
            chosen.under_way += 1
            chosen.trying = chosen.failures >= FAILURES
            return chosen

    def wait_s(self) -> float:
        """Seconds until a circuit can be tried."""
        with self._lock:
            return max(0.001, min(e.open_until for e in self.all) - self._clock())

    def answered(self, endpoint: Endpoint, seconds: float) -> None:
        """It answered, be it with a refusal."""
        with self._lock:
            self._end(endpoint)
            endpoint.failures, endpoint.problem = 0, ""
            endpoint.latency_s = (
                seconds if not endpoint.latency_s else (_MEMORY * endpoint.latency_s + (1 - _MEMORY) * seconds)
            )
            self._latencies.append(seconds)

    def failed(self, endpoint: Endpoint, problem: str = "") -> None:
        """It could not be reached, did not answer in time, or answered 5xx; `problem` says which."""
        with self._lock:
            self._end(endpoint)
            endpoint.failures += 1
            endpoint.problem = problem
            if endpoint.failures >= FAILURES:
                pause = min(MOST_OPEN_S, OPEN_S * 2 ** (endpoint.failures - FAILURES))
                endpoint.open_until = self._clock() + pause

    def dropped(self, endpoint: Endpoint) -> None:
        """The request was given up for reasons of ours: nothing was learnt."""
        with self._lock:
            self._end(endpoint)

    def why_open(self) -> str:
        """What is known of the urls whose circuits are open; empty where none is."""
        with self._lock:
            open_ones = [e for e in self.all if e.failures >= FAILURES]
            return "; ".join(f"{e.url} failed {e.failures} times in a row, last: {e.problem}" for e in open_ones)

    def p95_s(self) -> float | None:
        """The 95th percentile of the latest latencies; `None` before there are enough."""
        with self._lock:
            if len(self._latencies) < _NEEDED:
                return None
            return sorted(self._latencies)[int(0.95 * (len(self._latencies) - 1))]

    def _end(self, endpoint: Endpoint) -> None:
        endpoint.under_way -= 1
        endpoint.trying = False
