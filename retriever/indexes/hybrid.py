"""`hybrid`: lexical and dense lists merged by reciprocal-rank fusion (Cormack et al., 2009).

A passage scores the sum of 1 / (60 + rank) over the lists it is in. Names and numbers are found by their words, other
wording by its meaning; neither score needs to be comparable to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from agentrl.plugins import find
from agentrl.retriever.base import Build, Index, Opening, Passages, Ranked, check_request
from agentrl.retriever.errors import IndexBuildError
from agentrl.retriever.manifest import Manifest

CONSTANT = 60
_LEAST_DEPTH, _DEPTH = 30, 5  # of each list, for each passage wanted
_FLAT_UP_TO = 50_000


class HybridIndex:
    """Two indexes over the same passages."""

    def __init__(self, lexical: Index, dense: Index) -> None:
        self._lexical, self._dense = lexical, dense

    def __len__(self) -> int:
        return len(self._lexical)

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Write both. The dense half is flat, or pq above 50,000 passages, or what the option `dense` says."""
        dense = build.options.get("dense") or ("flat" if len(build.passages) <= _FLAT_UP_TO else "pq")
        if dense in ("bm25", "hybrid"):
            raise IndexBuildError(
                f"the dense half of a hybrid index cannot be {dense}; choose flat, pq, hnsw or ivf-pq"
            )
        options = dict(find("index", "bm25").write(build))
        return options | find("index", dense).write(build) | {"dense": dense}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Open both."""
        halves = ("bm25", manifest.options["dense"])
        return cls(*(find("index", kind).open(folder, manifest, passages, opening) for kind in halves))

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranked]:
        """At most `topk` rows for each query, by their fused ranks."""
        check_request(queries, topk)
        depth = min(len(self), max(_LEAST_DEPTH, _DEPTH * topk))
        lists = zip(self._lexical.rank(queries, depth), self._dense.rank(queries, depth))
        return [fuse(both)[:topk] for both in lists]


def fuse(lists: Sequence[Ranked]) -> Ranked:
    """All rows of `lists` by the sum of 1 / (60 + rank), ranks from 1; equal sums keep the corpus order."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, (row, _) in enumerate(ranked, start=1):
            scores[row] = scores.get(row, 0.0) + 1 / (CONSTANT + rank)
    return sorted(scores.items(), key=lambda found: (-found[1], found[0]))
