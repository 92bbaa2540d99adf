"""`faiss-file`: somebody else's faiss index and JSONL corpus, where they stand.

Search-R1's published `e5_Flat.index` and `wiki-18.jsonl` are served so without a copy: the folder that `build` writes
holds only the offsets of the corpus, its ids, and the hashes of both files. A flat index is memory-mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from agentrl.retriever.base import Build, Opening, Passages, Ranked, check_request, tidy
from agentrl.retriever.dense import encoder_of, faiss_module
from agentrl.retriever.encoders.base import OpenedEncoder
from agentrl.retriever.errors import IndexBuildError, IndexOpenError
from agentrl.retriever.manifest import Manifest, check_hash


class FaissFileIndex:
    """Ranks by the scores of the faiss index itself."""

    packages: ClassVar[tuple[str, ...]] = ("faiss",)

    def __init__(self, index: Any, encoder: OpenedEncoder) -> None:
        self._index, self._encoder = index, encoder

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Check that index, corpus and encoder go together; nothing is written. `options["faiss"]` names the file."""
        path = Path(build.options["faiss"]).expanduser().resolve()
        if build.encoder is None:
            raise IndexBuildError(f"{path}: name the encoder that made it with --encoder PATH_OR_ID")
        index = _read(path)
        if index.ntotal != len(build.passages):
            raise IndexBuildError(
                f"{path} has {index.ntotal} vectors, the corpus {len(build.passages)} passages: they do not go together"
            )
        if index.d != build.encoder.dimension:
            raise IndexBuildError(
                f"{path} has vectors of {index.d}, encoder {build.encoder.spec.name} makes {build.encoder.dimension}: "
                "give the encoder that made it"
            )
        return {"dimension": index.d, "faiss": str(path)}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Open the file, whose hash is the manifest's."""
        encoder = encoder_of(folder, manifest, opening)
        index = _read(check_hash(folder, manifest, manifest.options["faiss"], trust=opening.trust))
        if index.ntotal != len(passages):
            raise IndexOpenError(f"{folder}: {index.ntotal} vectors, {len(passages)} passages; build it anew")
        return cls(index, encoder)

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranked]:
        """At most `topk` rows for each query, best first."""
        check_request(queries, topk)
        asked = [tidy(query) for query in queries]
        if not any(asked):
            return [[] for _ in asked]
        scores, rows = self._index.search(self._encoder.queries(asked), min(topk, len(self)))
        sign = 1 if self._index.metric_type == faiss_module().METRIC_INNER_PRODUCT else -1  # distances: least is best
        return [
            [(int(row), sign * float(score)) for row, score in zip(*found) if row >= 0] if query else []
            for query, found in zip(asked, zip(rows, scores))
        ]


def _read(path: Path) -> Any:
    faiss = faiss_module()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexOpenError(f"{path}: faiss cannot read it ({error}); give a faiss index file") from error
