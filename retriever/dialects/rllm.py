"""rLLM's answer to one `query` with `top_k` or `k`: flat `results` with id, content and score."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.retriever.base import Hit
from agentrl.retriever.dialects.base import Wanted, rendered, score


class Rllm:
    """`{"query", "method", "results": [{"id", "content", "score"}], "num_results"}`."""

    content_type = "application/json"

    def takes(self, wanted: Wanted) -> bool:
        """JSON with `query` and `top_k` or `k`."""
        return not wanted.msgpack and "query" in wanted.fields and bool({"top_k", "k"} & wanted.fields)

    def render(self, wanted: Wanted, found: Sequence[Sequence[Hit]]) -> bytes:
        """JSON."""
        results = [{"id": hit.passage.id, "content": hit.passage.contents, "score": score(hit)} for hit in found[0]]
        return rendered(
            {"query": wanted.queries[0], "method": "agentrl", "results": results, "num_results": len(results)}
        )
