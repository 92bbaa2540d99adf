"""Open a searcher from a url, a folder or an object."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from agentrl.retriever.base import Searcher, once
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.errors import IndexOpenError


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
    from agentrl.retriever.bm25 import Bm25Index  # the client of a server does without tantivy

    return once(spec, Bm25Index.open)


_lock = threading.Lock()
_clients: weakref.WeakValueDictionary[str, RetrieverClient] = weakref.WeakValueDictionary()
