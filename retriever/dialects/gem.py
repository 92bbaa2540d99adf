"""GEM's answer to msgpack, in msgpack: a flat `result` for one `query`, one list for each of `queries`."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.retriever.base import Hit
from agentrl.retriever.dialects.base import Wanted, scored


class Gem:
    """`{"result": [...]}` in msgpack."""

    content_type = "application/msgpack"

    def takes(self, wanted: Wanted) -> bool:
        """Whatever came as msgpack."""
        return wanted.msgpack

    def render(self, wanted: Wanted, found: Sequence[Sequence[Hit]]) -> bytes:
        """msgpack."""
        import msgpack

        lists = [[scored(hit, wanted.return_scores) for hit in hits] for hits in found]
        packed: bytes = msgpack.packb({"result": lists[0] if "query" in wanted.fields else lists})
        return packed
