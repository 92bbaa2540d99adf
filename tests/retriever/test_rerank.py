import pytest

from agentrl.retriever.base import Searcher
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.rerank import Reranked
from tests.retriever.helpers import PASSAGES


class ByLength:
    calls = 0

    def score(self, pairs):
        self.calls += 1
        return [-len(passage.text) for _, passage in pairs]


def test_a_second_stage_orders_what_the_first_found():
    index, reranker = Bm25Index.from_passages(PASSAGES), ByLength()
    reranked = Reranked(index, reranker, depth=4)
    assert isinstance(reranked, Searcher)
    queries = ["Brightkiln glass", "absent", "Torvik"]
    found = reranked.search_batch(queries, 1)
    for hits, first in zip(found, index.search_batch(queries, 4)):
        shortest = sorted((h.passage for h in first), key=lambda p: len(p.text))[:1]
        assert [h.passage for h in hits] == shortest
    assert found[0][0].score == -len(found[0][0].passage.text) and reranker.calls == 1
    assert reranked.search_batch(["absent"], 3) == [[]] and reranker.calls == 1


def test_equal_scores_keep_the_first_order_and_a_lost_score_shows():
    class Even:
        def score(self, pairs):
            return [0.0] * len(pairs)

    class Short:
        def score(self, pairs):
            return []

    index = Bm25Index.from_passages(PASSAGES)
    queries = ["glass kiln born"]
    plain = index.search_batch(queries, 5)
    ours = Reranked(index, Even()).search_batch(queries, 5)
    assert [h.passage for h in ours[0]] == [h.passage for h in plain[0]]
    with pytest.raises(RuntimeError, match="0 scores for"):
        Reranked(index, Short()).search_batch(["glass"], 1)
