"""What a searcher is, and how to open one from a url, a folder or an object."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import BadQuery, IndexOpenError

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


def open_searcher(spec: str | Path | Searcher) -> Searcher:
    """The searcher that `spec` names: an http(s) url, a folder written by `build_index`, or a searcher itself.

    A folder is opened once per process for as long as anybody uses it, and anew after it was rebuilt; so is a url.
    `IndexOpenError` where there is no such folder or it is not an index.
    """
    if not isinstance(spec, str | Path):
        if not isinstance(spec, Searcher):
            raise IndexOpenError(
                f"{spec!r:.80} is no searcher: give a url, an index folder, or an object with "
                "search_batch(queries, topk)"
            )
        return spec
    if isinstance(spec, str) and spec.lower().startswith(("http://", "https://")):
        from agentrl.retriever.client import RetrieverClient

        key: tuple[object, ...] = (spec,)
        with _lock:
            return _opened.get(key) or _opened.setdefault(key, RetrieverClient(spec))
    from agentrl.retriever.bm25 import Bm25Index

    path = Path(spec).expanduser().resolve()
    with _lock:
        try:
            manifest = (path / "meta.json").stat()
        except OSError:
            return Bm25Index.open(path)  # raises with the reason
        key = (path, manifest.st_ino, manifest.st_mtime_ns)
        return _opened.get(key) or _opened.setdefault(key, Bm25Index.open(path))


_lock = threading.Lock()
_opened: weakref.WeakValueDictionary[tuple[object, ...], Searcher] = weakref.WeakValueDictionary()
