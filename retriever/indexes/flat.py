"""`flat`: every vector is compared, nothing is lost and nothing is held in memory. For up to some 50,000 passages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.retriever.base import Build, blocks
from agentrl.retriever.dense import Candidates, DenseIndex, faiss_module

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 262_144  # vectors compared at a time


class FlatIndex(DenseIndex):
    """Exact search over the mapped vectors, on a GPU where faiss has one."""

    kind: ClassVar[str] = "flat"
    reranked: ClassVar[int] = 1

    @classmethod
    def make(cls, vectors: np.ndarray, build: Build) -> Any:
        """Nothing: the vectors themselves are the index."""
        return None

    @classmethod
    def memory_needed(cls, passages: int, dimension: int) -> int:
        """Nothing but a block."""
        return 0

    @classmethod
    def candidates(cls, index: Any, vectors: np.ndarray) -> Candidates:
        """Exact neighbours."""
        faiss = faiss_module()
        # Batches of a server stay below this; for those faiss' own loops beat a matrix product.
        faiss.cvar.distance_compute_blas_threshold = 3 * vectors.shape[1]
        if getattr(faiss, "get_num_gpus", int)() > 0:
            resources = faiss.StandardGpuResources()
            return lambda queries, k: _merged(
                queries,
                vectors,
                k,
                lambda q, v, n: faiss.knn_gpu(resources, q, v, n, metric=faiss.METRIC_INNER_PRODUCT),
            )
        return lambda queries, k: _merged(
            queries, vectors, k, lambda q, v, n: faiss.knn(q, v, n, faiss.METRIC_INNER_PRODUCT)
        )


def _merged(queries: np.ndarray, vectors: np.ndarray, k: int, knn: Any) -> np.ndarray:
    """(B, k) rows of the nearest of all blocks of `vectors`."""
    import numpy as np

    scores = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for block in blocks(len(vectors), _BLOCK):
        found, at = knn(queries, np.asarray(vectors[block.start : block.stop]), min(k, len(block)))
        scores, rows = np.hstack([scores, found]), np.hstack([rows, at + block.start])
        if rows.shape[1] > k:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return rows
