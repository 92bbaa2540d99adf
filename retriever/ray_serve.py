"""An index sharded over the nodes of a Ray cluster, behind the same URL, dialects and client.

Each shard is an index folder of its own (`build --shard I/N`) and a Ray Serve deployment that scales with its load; a
router asks all shards at once and merges their lists by score. Scores of dense shards are comparable as they are; those
of BM25 use each shard's own word frequencies, which on thousands of passages are nearly the whole corpus's. This is the
one part of the retriever that imports ray.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.errors import missing_package
from agentrl.retriever.base import Hit, Opening
from agentrl.retriever.corpus import Passage
from agentrl.retriever.dialects.base import Limits
from agentrl.retriever.opening import open_index
from agentrl.retriever.server import App, Manners

_Row = tuple[str, str, str, str | None, float]  # a passage and its score, as it travels


@dataclass(frozen=True)
class Cluster:
    """How shards are served. Each replica of a shard takes `threads` CPUs of its node."""

    host: str = "127.0.0.1"
    port: int = 8000
    most_replicas: int = 4  # of each shard; one is always there
    routers: int = 1
    threads: int = 1
    ongoing: float = 4.0  # requests that a replica has under way before another is started
    limits: Limits = field(default_factory=Limits)


class Shard:
    """One index folder, opened on whichever node it runs."""

    def __init__(self, folder: str, threads: int) -> None:
        self._index = open_index(folder, Opening(threads=threads))

    def search(self, queries: list[str], topk: int) -> list[list[_Row]]:
        """The hits of each query."""
        return [[_row(hit) for hit in hits] for hits in self._index.search_batch(queries, topk)]

    def document(self, identifier: str) -> _Row | None:
        """The passage with this id."""
        found = self._index.document(identifier)
        return None if found is None else _row(Hit(found, 0.0))

    def describe(self) -> dict[str, Any]:
        """What /health tells."""
        return self._index.describe()


class Shards:
    """A searcher over the handles of all shards."""

    in_thread = True  # its calls block: never on the event loop

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = handles

    def search_batch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages for each query, best first, of all shards."""
        asked = [handle.search.remote(list(queries), topk) for handle in self._handles]
        parts = [response.result() for response in asked]
        return [merge([part[position] for part in parts], topk) for position in range(len(queries))]

    def document(self, identifier: str) -> Passage | None:
        """The passage with this id, of whichever shard has it."""
        asked = [handle.document.remote(identifier) for handle in self._handles]
        found = [row for response in asked if (row := response.result()) is not None]
        return _hit(found[0]).passage if found else None


def merge(lists: Sequence[Sequence[_Row]], topk: int) -> list[Hit]:
    """The `topk` best of sorted lists; of equal scores, the earlier shard's first."""
    return [_hit(row) for row in list(heapq.merge(*lists, key=lambda row: -row[4]))[:topk]]


class Router:
    """The HTTP side: our ASGI application around the shards."""

    def __init__(self, limits: Limits, token: str | None, *handles: Any) -> None:
        self._app = App(Shards(handles), limits, token=token, manners=Manners())

    async def __call__(self, request: Any) -> Any:
        """Any request of any path."""
        from starlette.responses import Response

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(request.scope, request.receive, send)
        if not sent:
            return Response(status_code=499)  # the client is gone
        response = Response(sent[1]["body"], sent[0]["status"])
        response.raw_headers = list(sent[0]["headers"])
        return response


def serve(
    folders: Sequence[str | Path],
    cluster: Cluster = Cluster(),
    *,
    token: str | None = None,
    say: Callable[[str], object] = print,
    block: bool = True,
) -> None:
    """Serve the shards on the Ray cluster that RAY_ADDRESS or `ray.init` names, until interrupted where `block`.

    Each folder must be there on every node that may run its shard.
    """
    try:
        import ray
        from ray import serve as ray_serve
    except ModuleNotFoundError as error:
        raise missing_package("the retriever on a cluster", error) or error from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    ray_serve.start(http_options={"host": cluster.host, "port": cluster.port})
    scaling = {"min_replicas": 1, "max_replicas": cluster.most_replicas, "target_ongoing_requests": cluster.ongoing}
    actor = {"num_cpus": cluster.threads, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    handles = [
        ray_serve.deployment(Shard, name=f"shard-{number}", autoscaling_config=scaling, ray_actor_options=actor).bind(
            str(Path(folder).expanduser().absolute()), cluster.threads
        )
        for number, folder in enumerate(folders)
    ]
    router = ray_serve.deployment(Router, name="router", num_replicas=cluster.routers, max_ongoing_requests=1_000)
    ray_serve.run(router.bind(cluster.limits, token, *handles), name="retriever", route_prefix="/")
    say(f"serving {len(folders)} shards at http://{cluster.host}:{cluster.port} (Ctrl-C stops)")
    if not block:
        return
    try:
        while True:
            time.sleep(3_600)
    except KeyboardInterrupt:
        ray_serve.shutdown()
        say("stopped")


def _row(hit: Hit) -> _Row:
    passage = hit.passage
    return passage.id, passage.title, passage.text, passage.given, float(hit.score)


def _hit(row: _Row) -> Hit:
    return Hit(Passage(*row[:4]), row[4])
