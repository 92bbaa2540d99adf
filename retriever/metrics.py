"""The server's numbers, in Prometheus' text format.

Counters and histograms are slots of one array of doubles, a row for each replica, in memory that the replicas share:
whichever replica is asked answers for all of them.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence

_PREFIX = "agentrl_retriever_"
COUNTERS = {
    "requests_total": "requests answered",
    "queries_total": "queries in requests that were answered with passages",
    "refused_total": "requests answered 4xx",
    "overload_total": "requests whose deadline could not be met",
    "failed_total": "requests whose search failed",
    "disconnected_total": "requests dropped because their client was gone",
    "cache_hits_total": "queries answered from the cache",
    "cache_misses_total": "queries that were searched",
    "coalesced_total": "queries that shared the search of an equal one under way",
    "batches_total": "batches searched",
    "batched_queries_total": "queries in those batches",
    "search_seconds_total": "time in batches",
    "documents_total": "documents opened by id",
}
GAUGES = {"waiting_queries": "queries that wait", "replicas": "replicas that count here"}
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, in seconds."""

_NAMES = [*COUNTERS, *GAUGES, *(f"latency_{i}" for i in range(len(BOUNDS) + 1)), "latency_sum"]
_SLOT = {name: i for i, name in enumerate(_NAMES)}


class Metrics:
    """Numbers of one replica, row `row` of a memory made by `shared_memory`."""

    def __init__(self, memory: mmap.mmap | None = None, row: int = 0) -> None:
        self._memory = memory if memory is not None else shared_memory(1)
        whole = memoryview(self._memory).cast("d")
        self._rows = [whole[i : i + len(_NAMES)] for i in range(0, len(whole) - len(_NAMES) + 1, len(_NAMES))]
        self._own = self._rows[row]
        self._own[_SLOT["replicas"]] = 1
        self._own[_SLOT["waiting_queries"]] = 0  # an earlier replica of this row may have been killed

    def add(self, name: str, amount: float = 1.0) -> None:
        """Raise a counter."""
        self._own[_SLOT[name]] += amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._own[_SLOT[name]] = value

    def latency(self, seconds: float) -> None:
        """Note how long a request took, from its last byte to its answer."""
        self._own[_SLOT["latency_0"] + bisect_left(BOUNDS, seconds)] += 1
        self._own[_SLOT["latency_sum"]] += seconds

    def total(self, name: str) -> float:
        """A number over all replicas."""
        return sum(row[_SLOT[name]] for row in self._rows)

    def render(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for kind, table in (("counter", COUNTERS), ("gauge", GAUGES)):
            for name, text in table.items():
                lines += _metric(name, kind, text, [("", self.total(name))])
        buckets, count = [], 0.0
        for i, bound in enumerate((*BOUNDS, float("inf"))):
            count += self.total(f"latency_{i}")
            buckets.append((f'_bucket{{le="{"+Inf" if bound == float("inf") else bound}"}}', count))
        ends = [("_sum", self.total("latency_sum")), ("_count", count)]
        lines += _metric(
            "request_seconds", "histogram", "from the last byte of a request to its answer", buckets + ends
        )
        return ("\n".join(lines) + "\n").encode("ascii")


def shared_memory(replicas: int) -> mmap.mmap:
    """Zeroed memory for that many replicas, shared with processes that are forked later."""
    return mmap.mmap(-1, 8 * len(_NAMES) * replicas)


def _metric(name: str, kind: str, text: str, values: Sequence[tuple[str, float]]) -> list[str]:
    lines = [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]
    return lines + [f"{_PREFIX}{name}{suffix} {value:g}" for suffix, value in values]
