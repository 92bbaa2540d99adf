"""`hnsw`: a navigable small-world graph (Malkov and Yashunin, 2016) over 8-bit vectors, re-ranked exactly.

Fast at a batch of one; it takes the longest to build and, with its graph, most of the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.retriever.base import Build
from agentrl.retriever.dense import DenseIndex, add_in_blocks, faiss_module, sample

if TYPE_CHECKING:
    import numpy as np

_LINKS = 32
_BUILD_DEPTH, _SEARCH_DEPTH = 80, 256


class HnswIndex(DenseIndex):
    """A graph in memory: about d + 260 bytes a passage."""

    kind: ClassVar[str] = "hnsw"
    reranked: ClassVar[int] = 4

    @classmethod
    def make(cls, vectors: np.ndarray, build: Build) -> Any:
        """Train the 8-bit codes, then link all vectors."""
        faiss = faiss_module()
        index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_DEPTH
        index.train(sample(vectors, build))
        add_in_blocks(index, vectors, build, lambda what: f"{what} to hnsw")
        return index

    @classmethod
    def memory_needed(cls, passages: int, dimension: int) -> int:
        """Codes, two links' worth of 4 bytes each at the bottom, and a little above."""
        return passages * (dimension + 4 * (2 * _LINKS + 1))

    @classmethod
    def tune(cls, index: Any) -> None:
        """How far a search looks."""
        index.hnsw.efSearch = _SEARCH_DEPTH
