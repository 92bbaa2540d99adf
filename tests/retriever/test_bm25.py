import math
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import agentrl.retriever.bm25 as bm25
from agentrl.retriever.base import MAX_QUERY_CHARS
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import Passage
from agentrl.retriever.errors import BadQuery, IndexOpenError
from agentrl.retriever.opening import open_index
from tests.retriever.helpers import PASSAGES

WORDS = ["glass", "kiln", "torvik", "edda", "north", "river"]
DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=20)


def formula(documents: list[list[str]], query: list[str]) -> list[float]:
    """BM25 of each document with k1 = 1.2, b = 0.75 and Lucene's idf, from Robertson's definition."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for term in set(query):
            n = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            f = Counter(document)[term]
            score += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("common", [0, 1_000])
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=DOCUMENTS,
    query=st.lists(st.sampled_from([*WORDS, "absent"]), min_size=1, max_size=6),
    topk=st.integers(1, 25),
)
def test_scores_and_order_follow_the_formula(documents, query, topk, common, monkeypatch):
    """Also where every word may count as common, and passages with rarer ones are looked at alone."""
    monkeypatch.setattr(bm25, "_COMMON", common)
    # Titles are empty and lengths under 40, which tantivy's one-byte length norms store exactly.
    index = Bm25Index.from_passages(
        (Passage(str(i), "", " ".join(words)) for i, words in enumerate(documents)), stemming=False
    )
    expected = formula(documents, query)
    hits = index.search(" ".join(query), topk)
    assert [hit.score for hit in hits] == pytest.approx(
        [s for s in sorted(expected, reverse=True) if s > 0][:topk], rel=1e-5
    )
    for hit in hits:
        assert hit.score == pytest.approx(expected[int(hit.passage.id)], rel=1e-5)
    ranks = [(-hit.score, int(hit.passage.id)) for hit in hits]
    assert ranks == sorted(ranks)
    left_out = {i for i, s in enumerate(expected) if s > 0} - {int(hit.passage.id) for hit in hits}
    if hits:  # of equal documents, the earlier ones are returned
        last = int(hits[-1].passage.id)
        assert all(i > last for i in left_out if documents[i] == documents[last])


def test_finds_by_title_stem_accent_and_number():
    index = Bm25Index.from_passages(PASSAGES)
    assert index.search("Where was Vesna Oll born?", 1)[0].passage.id == "a"
    assert {hit.passage.id for hit in index.search("founding", 5)} == {"c"}
    assert {hit.passage.id for hit in index.search("cafe", 5)} == {"d"}
    assert {hit.passage.id for hit in index.search("Cafe\u0301", 5)} == {"d"}
    assert {hit.passage.id for hit in index.search("1921", 5)} == {"c"}
    assert not Bm25Index.from_passages(PASSAGES, stemming=False).search("founding", 5)


def test_function_words_count_only_where_there_is_nothing_else():
    assert {hit.passage.id for hit in INDEX.search("the city of Torvik", 5)} == {"a", "b"}
    assert {hit.passage.id for hit in INDEX.search("for the in", 5)} == {"a", "b", "c", "d"}
    plain = Bm25Index.from_passages(PASSAGES, stemming=False)
    assert len(plain.search("in glass", 5)) > len(plain.search("glass", 5))  # other languages have other such words


def test_words_in_nearly_all_passages_are_looked_up_in_the_others_only(monkeypatch):
    """One search where the rare word decides, a second one over all words where too few passages have it."""
    monkeypatch.setattr(bm25, "_COMMON", 10)
    passages = [Passage(str(n), "", f"city time zone {'kiln ' if n % 20 == 7 else ''}{n}") for n in range(100)]
    index, plain = (Bm25Index.from_passages(passages) for _ in range(2))
    searched = []

    class Spy:
        def __init__(self, searcher):
            self._searcher = searcher

        def __getattr__(self, name):
            return getattr(self._searcher, name)

        def search(self, query, limit, count):
            searched.append(str(query))
            return self._searcher.search(query, limit, count=count)

    index._searcher = Spy(index._searcher)
    rows = [hit.passage.id for hit in index.search("kiln city time zone", 3)]
    assert rows == ["7", "27", "47"] and all("Must" in query for query in searched)
    del searched[:]
    found = index.search("kiln city time zone", 8)  # five have a kiln
    assert [hit.passage.id for hit in found] == ["7", "27", "47", "67", "87", "0", "1", "2"]
    assert "Must" in searched[0] and "Must" not in searched[-1]
    monkeypatch.setattr(bm25, "_COMMON", 1_000)
    whole = plain.search("kiln city time zone", 8)
    assert [h.passage for h in whole] == [h.passage for h in found]
    assert [h.score for h in whole] == pytest.approx([h.score for h in found], rel=1e-6)


def test_a_rare_word_in_long_passages_does_not_hide_short_ones_of_a_common_word(monkeypatch):
    """A common word alone scores about 1.0 in short passages here, the rare one 0.5 in long ones."""
    passages = [Passage(f"long{n}", "", "kiln " + "filler " * 400) for n in range(10)]
    passages += [Passage(f"short{n}", "", "city city city" if n < 60 else "other other other") for n in range(90)]
    index = Bm25Index.from_passages(passages)
    expected = index.search_batch(["kiln city"], 3)
    monkeypatch.setattr(bm25, "_COMMON", 10)
    rare, common, _ = index._split(["kiln", "citi"])
    assert (rare, common) == (["kiln"], ["citi"])
    found = Bm25Index.from_passages(passages).search_batch(["kiln city"], 3)
    assert [hit.passage.id for hit in found[0]] == ["short0", "short1", "short2"]
    assert [hit.passage for hit in found[0]] == [hit.passage for hit in expected[0]]


def test_equal_scores_keep_the_corpus_order_across_segments():
    passages = [Passage(str(row), "", "kiln") for row in range(60)]
    index = bm25._new_index(None, True)
    writer = index.writer(50_000_000, 1)
    for rows in (range(40, 60), range(20), range(20, 40)):  # three segments, none in its place
        for row in rows:
            writer.add_document(bm25._document(row, passages[row]))
        writer.commit()
    opened = Bm25Index(index, passages, stemming=True, name="test")
    assert opened._searcher.num_segments == 3
    for topk in (1, 7, 45, 100):
        assert [hit.passage.id for hit in opened.search("kilns", topk)] == [str(row) for row in range(min(topk, 60))]


HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",
    "\udfffkiln",
    '"unclosed (AND NOT body:* ^2 ~',
    "[a TO b}",
    "\u202etext",
    "?" * 9,
    "😀",
]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=60))
@example("\ud800kiln\x00")
def test_any_string_is_a_query(query):
    hits = INDEX.search(query, 5)
    assert len(hits) <= 5
    assert all(math.isfinite(hit.score) and hit.score > 0 for hit in hits)


INDEX = Bm25Index.from_passages(PASSAGES)


@pytest.mark.parametrize("query", HOSTILE)
def test_hostile_queries(query):
    expected = ["b"] if "kiln" in query else None
    hits = INDEX.search_batch([query], 3)[0]
    if expected:
        assert [hit.passage.id for hit in hits] == expected
    elif not re.search(r"\w", query):
        assert hits == []


def test_a_megabyte_is_cut_not_searched():
    assert [hit.passage.id for hit in INDEX.search("kiln " * 200_000, 3)] == ["b"]
    assert INDEX.search("?" * MAX_QUERY_CHARS + " kiln", 3) == []
    assert INDEX.search("x" * 1_000_000, 3) == []


def test_operators_of_a_query_language_are_words():
    ids = lambda query: [hit.passage.id for hit in INDEX.search(query, 5)]  # noqa: E731
    assert ids("-torvik") == ids("torvik") == ids("body:torvik") == ids('"torvik"~2^9')


def test_bad_arguments():
    for topk in (0, -1, True, 1.0, None):
        with pytest.raises(BadQuery, match="topk"):
            INDEX.search_batch(["x"], topk)
    with pytest.raises(BadQuery, match="list of strings"):
        INDEX.search_batch("kiln", 1)
    with pytest.raises(BadQuery, match="queries must be strings"):
        INDEX.search_batch([None], 1)
    assert INDEX.search_batch([], 1) == []
    assert len(INDEX.search("glass", 10**15)) == 2


def test_cached_results_belong_to_the_caller():
    first = INDEX.search("glass", 2)
    first.clear()
    assert len(INDEX.search("glass", 2)) == 2


@pytest.mark.parametrize("suffix", [".term", ".idx", ".fast", ".fieldnorm", ".pos", "meta.json"])
def test_damaged_files_give_our_error_or_hits_never_a_panic(tmp_path, suffix):
    out = tmp_path / "index"
    build_index([Passage(str(i), "", f"{WORDS[i % 6]} w{i} {WORDS[i % 5]}") for i in range(300)], out)
    file = next(path for path in (out / "tantivy").iterdir() if path.name.endswith(suffix) and path.name[0] != ".")
    whole = file.read_bytes()
    failures = 0

    def replace(content: bytes) -> None:
        file.unlink()  # a new file: the old one may still be mapped
        file.write_bytes(content)

    for start in range(0, len(whole), max(1, len(whole) // 25)):
        replace(whole[:start] + bytes(8) + whole[start + 8 :])
        try:
            open_index(out).search_batch([*WORDS, "w7"], 50)
        except IndexOpenError as error:
            failures += 1
            assert "anew" in str(error) or "build one" in str(error)
    replace(whole[: len(whole) // 2])
    with pytest.raises(IndexOpenError):
        open_index(out)
    assert failures > 0


def test_many_threads_get_the_same_answers(tmp_path, monkeypatch):
    build_index(PASSAGES, tmp_path / "index")
    monkeypatch.setattr(bm25, "_PARALLEL_PASSAGES", 1)  # so that a batch is spread over threads, too
    index = open_index(tmp_path / "index")
    queries = ["glass", "torvik", "edda", "kiln 1921", "born", ""] * 20
    expected = [INDEX.search(query, 3) for query in queries]
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait(10)
        return index.search_batch(queries, 3)

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(work, range(8)))
