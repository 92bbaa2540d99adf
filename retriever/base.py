"""What a searcher and an index are, and the words that index, server and client share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar, cast, runtime_checkable

from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import BadQuery

if TYPE_CHECKING:
    from agentrl.retriever.encoders.base import OpenedEncoder
    from agentrl.retriever.manifest import Manifest

MAX_QUERY_CHARS = 4096
"""A longer query is cut here, by the index as by the client, so that both give the same passages."""


class Hit(NamedTuple):
    """A passage found, with its score (higher is better; comparable within one query only)."""

    passage: Passage
    score: float


@runtime_checkable
class Searcher(Protocol):
    """Anything that finds passages.

    Two optional members let `MicroBatcher` choose how to call it: `asearch_batch` (a coroutine of the same arguments)
    is awaited; `quick = True` says that a batch takes milliseconds at most and may run on the event loop. A searcher
    with neither is called in a thread.
    """

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` hits for each query, best first; an empty list where nothing matches."""
        ...


Ranked = list[tuple[int, float]]
"""Rows of passages with their scores, best first."""


class Passages(Protocol):
    """Passages by row: `PassageStore`, or a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Passage: ...


@dataclass(frozen=True)
class Build:
    """What a kind needs to write its files. The passages are in `folder` already."""

    folder: Path
    passages: Passages
    stemming: bool = True
    encoder: OpenedEncoder | None = None
    memory_bytes: int = 4 << 30  # that a build may hold at a time
    threads: int = 1
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    kept: dict[str, Any] = field(default_factory=dict)  # what an earlier, broken build had finished
    keep: Callable[[], None] = lambda: None  # brings `kept` to the disk
    options: Mapping[str, Any] = field(default_factory=dict)  # of the kind's own, from the command line


@dataclass(frozen=True)
class Opening:
    """How an index is opened: `trust` skips the hashes of native files, `threads` is for its encoder."""

    trust: bool = False
    threads: int = 1
    encoder: str | None = None  # another place of the same encoder


class Index(Searcher, Protocol):
    """A kind of index on disk (plug-in kind `index`). `quick`, as of a searcher, is optional."""

    def __len__(self) -> int: ...

    @classmethod
    def write(cls, build: Build) -> Mapping[str, Any]:
        """Write this kind's files into `build.folder`; returns the options that `open` needs."""
        ...

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, passages: Passages, opening: Opening) -> Self:
        """Open what `write` wrote; `IndexOpenError` says what is wrong with it."""
        ...

    def rank(self, queries: Sequence[str], topk: int) -> list[Ranked]:
        """At most `topk` rows for each query, best first."""
        ...


def check_request(queries: Sequence[str], topk: int) -> None:
    """Raise `BadQuery` unless `queries` is a sequence of strings and `topk` an integer of at least 1."""
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise BadQuery(f"topk = {topk!r}: the number of passages to return must be an integer of at least 1")
    if isinstance(queries, str):
        raise BadQuery(f"queries = {queries[:40]!r}: a list of strings is needed; for one query write [query]")
    for query in queries:
        if not isinstance(query, str):
            raise BadQuery(f"a query is {query!r:.40}, of type {type(query).__name__}; queries must be strings")


def tidy(query: str) -> str:
    """A query as every index sees it: cut, lone surrogates replaced, white space run together."""
    query = query[:MAX_QUERY_CHARS]
    if not query.isascii():
        query = query.encode("utf-8", "replace").decode("utf-8")
    return " ".join(query.split())


def blocks(count: int, size: int) -> Iterator[range]:
    """The rows 0 to `count`, `size` at a time."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


S = TypeVar("S", bound=Searcher)


def once(path: str | Path, opened: Callable[[Path], S], how: object = None) -> S:
    """The index in the folder `path`, opened once per process for as long as anybody uses it, and anew after a rebuild.

    `opened(path)` opens it, and raises where there is none; `how` says in which way, where there are several.
    """
    path = Path(path).expanduser().resolve()
    with _lock:
        try:
            manifest = (path / "meta.json").stat()
        except OSError:
            return opened(path)  # raises with the reason
        key = (path, manifest.st_ino, manifest.st_mtime_ns, how)
        return cast(S, _opened.get(key) or _opened.setdefault(key, opened(path)))


_lock = threading.RLock()
_opened: weakref.WeakValueDictionary[tuple[object, ...], Searcher] = weakref.WeakValueDictionary()
