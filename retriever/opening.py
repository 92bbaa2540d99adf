"""Open a searcher from a url, a folder or an object."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.errors import PluginError
from agentrl.plugins import find
from agentrl.retriever.base import Hit, Index, Opening, Searcher, check_request, once, tidy
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import IndexOpenError
from agentrl.retriever.ids import IdTable
from agentrl.retriever.manifest import Manifest, read
from agentrl.retriever.store import PassageStore

_PLAIN = Opening()
_CACHED_TOPK = 32  # a longer list is not worth the memory


class OpenedIndex:
    """An index folder, opened: its kind's ranking, its passages and its ids. Safe to use from several threads."""

    def __init__(self, folder: Path, manifest: Manifest, index: Index, store: PassageStore, cache: int) -> None:
        """Use `open_index`."""
        self.folder, self.manifest, self.index, self._store = folder, manifest, index, store
        self._ids = IdTable(folder, store)
        self._cached: OrderedDict[tuple[str, int], list[Hit]] = OrderedDict()
        self._cache_size, self._lock = cache, threading.Lock()

    def __len__(self) -> int:
        return len(self._store)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path, opened (once per process) where it arrives."""
        return open_index, (str(self.folder),)

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenedIndex:
        """Itself, because it never changes: Gymnasium copies an environment's arguments."""
        return self

    @property
    def kind(self) -> str:
        """The name of its kind."""
        return self.manifest.kind

    @property
    def quick(self) -> bool:
        """Whether a batch may run on an event loop without holding it up."""
        return bool(getattr(self.index, "quick", False))

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages for each query, best first. `BadQuery` where an argument is of the wrong type.

        A query beyond `MAX_QUERY_CHARS` is cut there. A query asked again is answered from a cache.
        """
        check_request(queries, topk)
        asked = [tidy(query) for query in queries]
        found: dict[str, list[Hit]] = {}
        wanted: list[str] = []
        with self._lock:
            for query in dict.fromkeys(asked):
                known = self._cached.get((query, topk))
                if known is None:
                    wanted.append(query)
                else:
                    self._cached.move_to_end((query, topk))
                    found[query] = known
        if wanted:
            for query, ranked in zip(wanted, self.index.rank(wanted, topk)):
                found[query] = [Hit(self._store[row], score) for row, score in ranked]
            self._keep({query: found[query] for query in wanted}, topk)
        return [list(found[query]) for query in asked]

    def document(self, identifier: str) -> Passage | None:
        """The passage with this id, or `None`."""
        row = self._ids.find(identifier)
        return None if row is None else self._store[row]

    def passage(self, row: int) -> Passage:
        """The passage of a row of the corpus, from 0."""
        return self._store[row]

    def describe(self) -> dict[str, Any]:
        """Kind, documents, SHA-256 of the corpus, encoder and versions, for /health."""
        encoder = self.manifest.encoder
        return {
            "kind": self.kind,
            "passages": len(self),
            "corpus": self.manifest.corpus,
            "encoder": None if encoder is None else {k: encoder[k] for k in ("name", "runtime", "dtype", "sha256")},
            "versions": self.manifest.versions,
        }

    def _keep(self, found: dict[str, list[Hit]], topk: int) -> None:
        if topk > _CACHED_TOPK or not self._cache_size:
            return
        with self._lock:
            for query, hits in found.items():
                self._cached[query, topk] = hits
            while len(self._cached) > self._cache_size:
                self._cached.popitem(last=False)


def open_index(path: str | Path, opening: Opening = _PLAIN, *, cache: int = 4_096) -> OpenedIndex:
    """The index in a folder, opened once per process for as long as anybody uses it, and anew after it was rebuilt.

    `cache` is the number of searches whose answers are kept. `IndexOpenError` where it is not an index or is damaged.
    """
    return once(path, partial(open_fresh, opening=opening, cache=cache), (opening, cache))


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
        with _lock:
            return _clients.get(spec) or _clients.setdefault(spec, RetrieverClient(spec))
    return open_index(spec)


def open_fresh(folder: Path, opening: Opening, cache: int = 0) -> OpenedIndex:
    """As `open_index`, without sharing."""
    manifest = read(folder)
    corpus = manifest.options.get("corpus")
    store = PassageStore(folder, manifest.passages, corpus=None if corpus is None else Path(corpus))
    try:
        kind = find("index", manifest.kind)
    except PluginError as error:
        raise IndexOpenError(f"{folder}: {error}") from error
    return OpenedIndex(folder, manifest, kind.open(folder, manifest, store, opening), store, cache)


_lock = threading.Lock()
_clients: weakref.WeakValueDictionary[str, RetrieverClient] = weakref.WeakValueDictionary()
