"""`ivf-pq`: cells around centroids (Jégou et al., 2011) with fast-scan codes, re-ranked exactly. For tens of millions.

Only some of the cells are searched: a query's cost grows with the root of the corpus, and some recall is lost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.retriever.base import Build
from agentrl.retriever.dense import DenseIndex, add_in_blocks, faiss_module, sample
from agentrl.retriever.indexes.pq import PqIndex, parts

if TYPE_CHECKING:
    import numpy as np

_LEAST = 4_096  # vectors: below, cells hold too few
_TRAINED_PER_CELL = 50
_PROBED, _PROBED_AT_LEAST = 16, 128  # one of so many cells


class IvfPqIndex(DenseIndex):
    """Codes in cells, in memory; vectors on disk."""

    kind: ClassVar[str] = "ivf-pq"

    @classmethod
    def make(cls, vectors: np.ndarray, build: Build) -> Any:
        """Train the centroids and the codes on a sample, then add all vectors."""
        if len(vectors) < _LEAST:
            return PqIndex.make(vectors, build)
        faiss = faiss_module()
        count, dimension = cells(len(vectors)), vectors.shape[1]
        factory = f"IVF{count},PQ{parts(dimension)}x4fs"
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(sample(vectors, build, max(65_536, _TRAINED_PER_CELL * count)))
        add_in_blocks(index, vectors, build, lambda what: f"{what} to ivf-pq")
        return index

    @classmethod
    def memory_needed(cls, passages: int, dimension: int) -> int:
        """Half a byte a part, 8 bytes a row, and the centroids."""
        return passages * (parts(dimension) // 2 + 8) + 4 * dimension * cells(passages)

    @classmethod
    def tune(cls, index: Any) -> None:
        """How many cells a search looks into."""
        if hasattr(index, "nprobe"):
            index.nprobe = min(index.nlist, max(_PROBED_AT_LEAST, index.nlist // _PROBED))


def cells(passages: int) -> int:
    """Four times the root of the corpus, as a power of two."""
    return int(2 ** round(math.log2(4 * math.sqrt(max(1, passages)))))
