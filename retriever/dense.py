"""What the dense kinds share: the passages' vectors on disk, candidates from an index in memory, exact re-ranking.

`vectors.f32` holds the (N, d) vectors, memory-mapped. A kind finds candidates (`Candidates`); their scores are then
computed exactly from those vectors, so that a kind's approximation can lose a passage but never order two wrongly.
Vectors are encoded in shards: a build that was killed goes on after the last whole one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from agentrl.errors import missing_package
from agentrl.retriever.base import Build, Opening, Passages, Ranked, blocks, check_request, tidy
from agentrl.retriever.encoders.base import OpenedEncoder, open_encoder
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import EncoderError, IndexBuildError, IndexOpenError
from agentrl.retriever.manifest import Manifest, check_hash

if TYPE_CHECKING:
    import numpy as np

VECTORS, FAISS = "vectors.f32", "index.faiss"
SHARD = 2_048
"""Passages encoded at a time; after each shard the build can be killed without loss."""

_TRAINED_ON = 65_536  # vectors
_CHECKED = 32  # rows whose own vectors must find them
_RERANKED = 20  # candidates for each passage wanted


class Candidates(Protocol):
    """Finds rows that are probably among the nearest."""

    def __call__(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, d) float32 and k to (B, k) int64, -1 where there is none."""
        ...


class DenseIndex:
    """A dense index; a kind is a subclass that says how candidates are found. Scores are inner products."""

    kind: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ("faiss",)
    reranked: ClassVar[int] = _RERANKED

    def __init__(self, name: str, encoder: OpenedEncoder, vectors: np.ndarray, candidates: Candidates) -> None:
        """Use `open`. `vectors` (N, d) float32."""
        self.name, self._encoder, self._vectors, self._candidates = name, encoder, vectors, candidates

    def __len__(self) -> int:
        return len(self._vectors)

    @classmethod
    def make(cls, vectors: np.ndarray, build: Build) -> Any:
        """A faiss index of `vectors` (N, d), or `None` where the kind needs none."""
        raise NotImplementedError

    @classmethod
    def memory_needed(cls, passages: int, dimension: int) -> int:
        """Bytes that the built index holds in memory, besides the mapped vectors."""
        raise NotImplementedError

    @classmethod
    def tune(cls, index: Any) -> None:
        """Set the search parameters of a faiss index that was read."""

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Encode the passages, and write vectors and faiss index."""
        encoder = _needed(build.encoder, cls.kind)
        needed = cls.memory_needed(len(build.passages), encoder.dimension)
        if needed > build.memory_bytes:
            raise IndexBuildError(
                f"kind {cls.kind} needs about {needed / 2**30:.1f} GiB for {len(build.passages):,} passages, the build "
                f"may take {build.memory_bytes / 2**30:.1f}: raise --memory, or choose --kind ivf-pq or pq"
            )
        encode(build, encoder)
        vectors = map_vectors(build.folder, len(build.passages), encoder.dimension)
        build.progress(f"building {cls.kind}", 0, len(vectors))
        save(cls.make(vectors, build), build.folder)
        build.progress(f"building {cls.kind}", len(vectors), len(vectors))
        return {"dimension": encoder.dimension}

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Map the vectors and load the faiss index; `IndexOpenError` says what is wrong."""
        encoder = encoder_of(folder, manifest, opening)
        vectors = map_vectors(folder, len(passages), encoder.dimension)
        index = None
        if FAISS in manifest.files:
            index = load(check_hash(folder, manifest, FAISS, trust=opening.trust))
            if (index.ntotal, index.d) != vectors.shape:
                raise IndexOpenError(
                    f"{folder / FAISS} has {index.ntotal} vectors of {index.d}, "
                    f"{vectors.shape[0]} of {vectors.shape[1]} are stored; build the index anew"
                )
            cls.tune(index)
        return cls(str(folder), encoder, vectors, cls.candidates(index, vectors))

    @classmethod
    def candidates(cls, index: Any, vectors: np.ndarray) -> Candidates:
        """How candidates are found: by the faiss index."""
        return lambda queries, k: index.search(queries, k)[1]

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranked]:
        """At most `topk` rows for each query, by the inner product of the vectors; an empty query has none."""
        check_request(queries, topk)
        asked = [tidy(query) for query in queries]
        if not any(asked):
            return [[] for _ in asked]
        ranked = self.nearest(self._encoder.queries(asked), topk)
        return [rows if query else [] for query, rows in zip(asked, ranked)]

    def problem(self) -> str | None:
        """Why the index does not find its own vectors, or `None`; looked at in some rows."""
        import numpy as np

        rows = np.unique(np.linspace(0, len(self) - 1, _CHECKED).astype(np.int64))
        lost = 0
        for row, ranked in zip(rows, self.nearest(np.ascontiguousarray(self._vectors[rows]), 1)):
            own = float(self._vectors[row] @ self._vectors[row])
            lost += not ranked or ranked[0][1] < own * (1 - 1e-4)
        return f"{lost} of {len(rows)} passages are not found by their own vectors" if lost > len(rows) // 8 else None

    def nearest(self, queries: np.ndarray, topk: int) -> list[Ranked]:
        """At most `topk` rows for each of the (B, d) query vectors; equal scores keep the corpus order."""
        k = min(len(self), max(topk, self.reranked * topk))
        rows = self._candidates(queries, k)
        return [best(query, found[found >= 0], self._vectors, topk) for query, found in zip(queries, rows)]


def best(query: np.ndarray, rows: np.ndarray, vectors: np.ndarray, topk: int) -> Ranked:
    """The `topk` best of `rows` (c,) by exact inner product with `query` (d,)."""
    import numpy as np

    rows = np.sort(rows)  # in the order of the file: fewer pages are touched twice
    scores = vectors[rows] @ query
    order = np.argsort(-scores, kind="stable")[:topk]
    return [(int(rows[i]), float(scores[i])) for i in order]


def encode(build: Build, encoder: OpenedEncoder) -> None:
    """Write the vectors of all passages, shard by shard, after those that `build.kept` says are done."""
    import numpy as np

    path, total = build.folder / VECTORS, len(build.passages)
    width = 4 * encoder.dimension
    done = min(int(build.kept.get("encoded", 0)), path.stat().st_size // width if path.exists() else 0)
    path.touch()
    os.truncate(path, done * width)
    with path.open("ab") as file:
        for start in range(done, total, SHARD):
            rows = range(start, min(start + SHARD, total))
            vectors = encoder.passages([build.passages[row].contents for row in rows])
            if not np.isfinite(vectors).all():
                raise EncoderError(
                    f"encoder {encoder.spec.name}: vectors of the passages {rows[0]} to {rows[-1]} are not finite"
                )
            vectors.tofile(file)
            file.flush()
            os.fsync(file.fileno())
            build.kept["encoded"] = rows[-1] + 1
            build.keep()
            build.progress("encoding", rows[-1] + 1, total)


def map_vectors(folder: Path, passages: int, dimension: int) -> np.ndarray:
    """The (passages, dimension) vectors of a folder, memory-mapped; `IndexOpenError` where they are others."""
    import numpy as np

    path = folder / VECTORS
    size = path.stat().st_size if path.is_file() else 0
    if size != 4 * passages * dimension:
        raise IndexOpenError(
            f"{path} has {size} bytes, {passages} passages of dimension {dimension} need {4 * passages * dimension}: "
            "the encoder is another one or the index is damaged; build it anew"
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(passages, dimension))


def encoder_of(folder: Path, manifest: Manifest, opening: Opening) -> OpenedEncoder:
    """The encoder that made the index; `IndexOpenError` where the one found is another."""
    if not manifest.encoder:
        raise IndexOpenError(f"{folder}: the manifest names no encoder; build the index anew with --encoder")
    spec = EncoderSpec.from_dict(manifest.encoder)
    if opening.encoder is not None:
        spec = EncoderSpec.from_dict(manifest.encoder | {"name": opening.encoder})
    try:
        encoder = open_encoder(spec, opening.threads)
    except EncoderError as error:
        raise IndexOpenError(
            f"{folder}: its encoder cannot be opened: {error} (or --encoder, where it is now)"
        ) from error
    wanted = manifest.options.get("dimension")
    if encoder.dimension != wanted:
        raise IndexOpenError(
            f"{folder} was built with vectors of {wanted}, encoder {spec.name} makes {encoder.dimension}: "
            f"give the one it was built with ({manifest.encoder['name']}) with --encoder"
        )
    if encoder.sha256 != manifest.encoder["sha256"] and not opening.trust:
        raise IndexOpenError(
            f"{folder} was built with another encoder than {spec.name} is now (SHA-256 "
            f"{manifest.encoder['sha256'][:12]}, found {encoder.sha256[:12]}): give the one it was built with with "
            "--encoder, build the index anew, or add --trust"
        )
    return encoder


def add_in_blocks(index: Any, vectors: np.ndarray, build: Build, step: Callable[[str], str]) -> None:
    """Add all `vectors` to a trained faiss index, as many at a time as the memory allows."""
    import numpy as np

    size = max(1_024, min(50_000, build.memory_bytes // (16 * vectors.shape[1])))
    for rows in blocks(len(vectors), size):
        index.add(np.ascontiguousarray(vectors[rows.start : rows.stop]))
        build.progress(step("adding"), rows.stop, len(vectors))


def sample(vectors: np.ndarray, build: Build, at_most: int = _TRAINED_ON) -> np.ndarray:
    """At most `at_most` vectors, evenly spread over the corpus, that training may hold in memory."""
    import numpy as np

    most = min(at_most, max(1_024, build.memory_bytes // (8 * vectors.shape[1])))
    rows = np.linspace(0, len(vectors) - 1, min(most, len(vectors))).astype(np.int64)
    return np.ascontiguousarray(vectors[np.unique(rows)])


def faiss_module() -> Any:
    """faiss, or an error that says how to install it."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise missing_package("a dense index", error) or error from error
    return faiss


def save(index: Any, folder: Path) -> None:
    """Write a faiss index to `folder`, if there is one."""
    if index is None:
        return
    path = folder / FAISS
    try:
        faiss_module().write_index(index, str(path))
    except RuntimeError as error:  # faiss reports a full disk so
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load(path: Path) -> Any:
    """A faiss index from a file whose hash was checked; `IndexOpenError` where faiss cannot read it."""
    try:
        return faiss_module().read_index(str(path))
    except RuntimeError as error:
        raise IndexOpenError(f"{path}: faiss cannot read it ({error}); build the index anew") from error


def _needed(encoder: OpenedEncoder | None, kind: str) -> OpenedEncoder:
    if encoder is None:
        raise IndexBuildError(f"kind {kind} needs an encoder: add --encoder PATH_OR_ID")
    return encoder
