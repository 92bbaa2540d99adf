"""`qdrant`: the vectors in a Qdrant engine, for those who run one already.

With the option `url` the collection is written to that engine; without, Qdrant's local mode holds it in memory, filled
from the mapped vectors when the index is opened. Local mode on disk is left out on purpose: it reads pickles.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from agentrl.errors import missing_package
from agentrl.retriever.base import Build, Opening, Passages, blocks
from agentrl.retriever.dense import DenseIndex, encode, encoder_of, map_vectors
from agentrl.retriever.errors import IndexBuildError, IndexOpenError
from agentrl.retriever.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

_UPLOADED = 1_000  # vectors at a time
_COLLECTION = "passages"


class QdrantIndex(DenseIndex):
    """Candidates from Qdrant, re-ranked exactly from the vectors on disk."""

    kind: ClassVar[str] = "qdrant"
    packages: ClassVar[tuple[str, ...]] = ("qdrant_client",)
    reranked: ClassVar[int] = 4

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Encode the passages, and fill the engine where there is a url."""
        if build.encoder is None:
            raise IndexBuildError("kind qdrant needs an encoder: add --encoder PATH_OR_ID")
        encode(build, build.encoder)
        url, name = build.options.get("url"), build.options.get("collection") or _COLLECTION
        if url:
            _fill(_client(url), name, map_vectors(build.folder, len(build.passages), build.encoder.dimension), build)
        return {"dimension": build.encoder.dimension, "url": url, "collection": name}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Connect, or fill the local mode."""
        encoder = encoder_of(folder, manifest, opening)
        vectors = map_vectors(folder, len(passages), encoder.dimension)
        url, name = manifest.options.get("url"), manifest.options["collection"]
        client = _client(url)
        if not url:
            _fill(client, name, vectors, None)
        try:
            count = client.count(name).count
        except Exception as error:  # the client's errors share no base
            raise IndexOpenError(
                f"Qdrant at {url}: collection {name!r} cannot be read ({error}); is it running?"
            ) from error
        if count != len(passages):
            raise IndexOpenError(
                f"Qdrant at {url}: collection {name!r} has {count} vectors, {len(passages)} passages are stored; "
                "build the index anew"
            )

        def candidates(queries: np.ndarray, k: int) -> np.ndarray:
            import numpy as np

            rows = np.full((len(queries), k), -1, dtype=np.int64)
            for position, query in enumerate(queries):
                found = client.query_points(name, query=query.tolist(), limit=k, with_payload=False).points
                rows[position, : len(found)] = [point.id for point in found]
            return rows

        return cls(str(folder), encoder, vectors, candidates)


def _client(url: str | None) -> Any:
    try:
        from qdrant_client import QdrantClient
    except ModuleNotFoundError as error:
        raise missing_package("a Qdrant index", error) or error from error
    return QdrantClient(url=url) if url else QdrantClient(":memory:")


def _fill(client: Any, name: str, vectors: np.ndarray, build: Build | None) -> None:
    from qdrant_client import models

    if client.collection_exists(name):
        client.delete_collection(name)
    params = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection(name, vectors_config=params)
    for rows in blocks(len(vectors), _UPLOADED):
        points = models.Batch(ids=list(rows), vectors=vectors[rows.start : rows.stop].tolist())
        client.upsert(name, points=points, wait=True)
        if build is not None:
            build.progress("filling qdrant", rows.stop, len(vectors))
