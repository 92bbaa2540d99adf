"""A second stage: another model orders the passages that an index found.

No cross-encoder is shipped: a `Reranker` is yours to give. `Reranked` is a searcher like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentrl.retriever.base import Hit, Searcher
from agentrl.retriever.corpus import Passage


class Reranker(Protocol):
    """Says how well passages answer queries."""

    def score(self, pairs: Sequence[tuple[str, Passage]]) -> Sequence[float]:
        """A score for each pair of query and passage; higher is better."""
        ...


class Reranked:
    """`searcher`, with the best `depth` of its hits ordered by `reranker`; its scores are the reranker's."""

    def __init__(self, searcher: Searcher, reranker: Reranker, depth: int = 50) -> None:
        self._searcher, self._reranker, self._depth = searcher, reranker, depth

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages for each query; the pairs of all queries are scored in one call."""
        found = self._searcher.search_batch(queries, max(topk, self._depth))
        pairs = [(query, hit.passage) for query, hits in zip(queries, found) for hit in hits]
        scores = list(self._reranker.score(pairs)) if pairs else []
        if len(scores) != len(pairs):
            raise RuntimeError(f"the reranker gave {len(scores)} scores for {len(pairs)} pairs")
        rest = iter(scores)
        scored = [[Hit(hit.passage, float(next(rest))) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: -hit.score)[:topk] for hits in scored]
