"""Search-R1's answer: `{"result": [[...]]}`, one list for each query. Takes whatever no other dialect takes.

Its clients: Search-R1, verl, Agent Lightning (scores), slime (bare documents), skyrl-gym (one `query`), ZeroSearch
(`top_k`), R1-Searcher (`k`), ASearcher.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.retriever.base import Hit
from agentrl.retriever.dialects.base import Wanted, rendered, scored


class SearchR1:
    """Nested lists of documents, or of documents with scores."""

    content_type = "application/json"

    def takes(self, wanted: Wanted) -> bool:
        """Always."""
        return True

    def render(self, wanted: Wanted, found: Sequence[Sequence[Hit]]) -> bytes:
        """JSON."""
        return rendered({"result": [[scored(hit, wanted.return_scores) for hit in hits] for hits in found]})
