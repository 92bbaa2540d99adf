"""Shards without Ray: parts of a corpus, and lists merged as one index would have them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.cli import main
from agentrl.retriever.corpus import CorpusReader
from agentrl.retriever.opening import open_index
from agentrl.retriever.ray_serve import Shard, Shards, merge
from tests.retriever.helpers import HASHING, PASSAGES


class Handle:
    """A shard in this process, called as Ray's handles are."""

    def __init__(self, folder):
        shard = Shard(str(folder), 1)
        for name in ("search", "document"):
            setattr(self, name, type("Method", (), {"remote": staticmethod(self._later(getattr(shard, name)))}))

    @staticmethod
    def _later(method):
        return lambda *args: type("Response", (), {"result": staticmethod(lambda: method(*args))})


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps({"id": p.id, "contents": p.contents}) + "\n" for p in PASSAGES))
    return file


def test_parts_of_a_corpus_are_all_of_it(tmp_path, corpus):
    parts = [list(CorpusReader(corpus, shard=(i, 3))) for i in (1, 2, 3)]
    assert [p.id for p in parts[0]] == ["a", "d"]
    assert sorted(p.id for part in parts for p in part) == [p.id for p in PASSAGES]
    assert main(["build", str(corpus), str(tmp_path / "s"), "--shard", "2/3"]) == 0
    assert [open_index(tmp_path / "s").passage(i).id for i in range(2)] == ["b", "e"]
    for wrong in ("0/3", "4/3", "x"):
        with pytest.raises(SystemExit):
            main(["build", str(corpus), str(tmp_path / "t"), "--shard", wrong])


def test_dense_shards_answer_as_one_index(tmp_path, corpus):
    plan = Plan(kind="flat", encoder=HASHING)
    build_index(PASSAGES, tmp_path / "whole", plan)
    for i in (1, 2):
        build_index(CorpusReader(corpus, shard=(i, 2)), tmp_path / f"shard{i}", plan)
    shards = Shards([Handle(tmp_path / f"shard{i}") for i in (1, 2)])
    queries, index = ["glass kiln", "born in Torvik", "Edda"], open_index(tmp_path / "whole")
    for topk in (1, 3, 9):
        for ours, whole in zip(shards.search_batch(queries, topk), index.search_batch(queries, topk), strict=True):
            assert [hit.passage for hit in ours] == [hit.passage for hit in whole]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in whole], abs=1e-5)
    assert shards.document("b") == PASSAGES[1] and shards.document("nix") is None


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4), st.integers(1, 8))
def test_merging_is_sorting(scores, topk):
    lists = [[(f"{i}-{j}", "", "x", None, float(s)) for j, s in enumerate(sorted(row, reverse=True))]
             for i, row in enumerate(scores)]  # fmt: skip
    merged = merge(lists, topk)
    assert [hit.score for hit in merged] == sorted((float(s) for row in scores for s in row), reverse=True)[:topk]
    rows = sorted((row for part in lists for row in part), key=lambda row: -row[4])
    assert [hit.passage.id for hit in merged] == [row[0] for row in rows][:topk]
