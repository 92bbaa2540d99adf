"""What a searcher is, and the words that index, server and client share."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import BadQuery

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


def check_request(queries: Sequence[str], topk: int) -> None:
    """Raise `BadQuery` unless `queries` is a sequence of strings and `topk` an integer of at least 1."""
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise BadQuery(f"topk = {topk!r}: the number of passages to return must be an integer of at least 1")
    if isinstance(queries, str):
        raise BadQuery(f"queries = {queries[:40]!r}: a list of strings is needed; for one query write [query]")
    for query in queries:
        if not isinstance(query, str):
            raise BadQuery(f"a query is {query!r:.40}, of type {type(query).__name__}; queries must be strings")


S = TypeVar("S", bound=Searcher)


def once(path: str | Path, opened: Callable[[Path], S]) -> S:
    """The index in the folder `path`, opened once per process for as long as anybody uses it, and anew after a rebuild.

    `opened(path)` opens it, and raises where there is none.
    """
    path = Path(path).expanduser().resolve()
    with _lock:
        try:
            manifest = (path / "meta.json").stat()
        except OSError:
            return opened(path)  # raises with the reason
        key = (path, manifest.st_ino, manifest.st_mtime_ns)
        return cast(S, _opened.get(key) or _opened.setdefault(key, opened(path)))


_lock = threading.Lock()
_opened: weakref.WeakValueDictionary[tuple[object, ...], Searcher] = weakref.WeakValueDictionary()
