import json
import math
import pickle
import re
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import agentrl.retriever.bm25 as bm25
from agentrl.retriever.bm25 import Bm25Index, build_index
from agentrl.retriever.corpus import CorpusReader, Passage
from agentrl.retriever.errors import BadQuery, CorpusError, IndexBuildError, IndexOpenError
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


@settings(deadline=None, max_examples=50)
@given(DOCUMENTS, st.lists(st.sampled_from([*WORDS, "absent"]), min_size=1, max_size=6), st.integers(1, 25))
def test_scores_and_order_follow_the_formula(documents, query, topk):
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
    assert INDEX.search("?" * bm25.MAX_QUERY_CHARS + " kiln", 3) == []
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


def test_build_open_and_search_in_a_fresh_process(tmp_path):
    seen = []
    assert build_index(PASSAGES, tmp_path / "deep" / "index", progress=seen.append) == len(PASSAGES)
    assert seen == [len(PASSAGES)]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["index"]
    code = (
        "import sys, json; from agentrl.retriever.opening import open_searcher\n"
        "found = open_searcher(sys.argv[1]).search_batch(['Brightkiln', 'hostile'], 2)\n"
        "print(json.dumps([[(h.passage.id, h.passage.contents, h.score) for h in hits] for hits in found]))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "deep" / "index")]
    fresh = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    here = [
        [[h.passage.id, h.passage.contents, h.score] for h in hits]
        for hits in INDEX.search_batch(["Brightkiln", "hostile"], 2)
    ]
    assert fresh == here
    assert fresh[1][0][0] == "e"
    stored = CorpusReader(tmp_path / "deep" / "index" / "passages.jsonl")
    assert list(stored) == PASSAGES


def test_an_index_is_replaced_only_when_asked_and_other_folders_never(tmp_path):
    out = tmp_path / "index"
    out.mkdir()  # an empty folder is fine
    build_index(PASSAGES[:2], out)
    with pytest.raises(IndexBuildError, match="an index is there"):
        build_index(PASSAGES, out)
    old = Bm25Index.open(out)
    build_index(PASSAGES, out, overwrite=True)
    assert len(Bm25Index.open(out)) == 5
    assert [hit.passage.id for hit in old.search("torvik", 5)] == ["b", "a"]  # an opened index outlives its files
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "meta.json").write_text("{}")
    with pytest.raises(IndexBuildError, match="not an index, so it is not touched"):
        build_index(PASSAGES, precious, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["index", "thesis"]


def test_a_failed_build_leaves_the_old_index_and_no_rubbish(tmp_path, monkeypatch):
    out = tmp_path / "index"
    build_index(PASSAGES[:2], out)

    def broken():
        yield PASSAGES[0]
        raise CorpusError("c.jsonl, line 2: malformed")

    with pytest.raises(CorpusError, match="line 2"):
        build_index(broken(), out, overwrite=True)
    with pytest.raises(IndexBuildError, match="not one passage"):
        build_index([], out, overwrite=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bm25.PassageWriter, "append", full)
    with pytest.raises(IndexBuildError, match=r"No space left on device.*; check free space"):
        build_index(PASSAGES, out, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]
    assert len(Bm25Index.open(out)) == 2


def test_opening_says_what_is_wrong(tmp_path):
    with pytest.raises(IndexOpenError, match=r"no such index; build one with `agentrl retriever build CORPUS .*none`"):
        Bm25Index.open(tmp_path / "none")
    with pytest.raises(IndexOpenError, match="not an index"):
        Bm25Index.open(tmp_path)
    out = tmp_path / "index"
    build_index(PASSAGES, out)
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(IndexOpenError, match="index format 99, this version reads 1"):
        Bm25Index.open(out)
    (out / "meta.json").write_text(json.dumps(meta | {"passages": 4}))
    with pytest.raises(IndexOpenError, match="4 passages need 40"):
        Bm25Index.open(out)
    (out / "meta.json").write_text(json.dumps(meta))
    lines = (out / "passages.jsonl").read_bytes()
    (out / "passages.jsonl").write_bytes(lines[:-5])
    with pytest.raises(IndexOpenError, match="copied in part or damaged"):
        Bm25Index.open(out)
    (out / "passages.jsonl").write_bytes(lines.replace(b'"title"', b'"tittl"'))
    with pytest.raises(IndexOpenError, match="line 1 is damaged"):
        Bm25Index.open(out).search("Vesna", 1)


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
            Bm25Index.open(out).search_batch([*WORDS, "w7"], 50)
        except IndexOpenError as error:
            failures += 1
            assert "anew" in str(error) or "build one" in str(error)
    replace(whole[: len(whole) // 2])
    with pytest.raises(IndexOpenError):
        Bm25Index.open(out)
    assert failures > 0


def test_many_threads_get_the_same_answers(tmp_path, monkeypatch):
    build_index(PASSAGES, tmp_path / "index")
    monkeypatch.setattr(bm25, "_PARALLEL_PASSAGES", 1)  # so that a batch is spread over threads, too
    index = Bm25Index.open(tmp_path / "index")
    queries = ["glass", "torvik", "edda", "kiln 1921", "born", ""] * 20
    expected = [INDEX.search(query, 3) for query in queries]
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait(10)
        return index.search_batch(queries, 3)

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(work, range(8)))


def test_pickled_as_its_path(tmp_path, monkeypatch):
    build_index(PASSAGES, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Bm25Index.open("index"))
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).search("torvik", 2) == INDEX.search("torvik", 2)
    with pytest.raises(TypeError, match="write it with build_index"):
        pickle.dumps(INDEX)


@pytest.mark.slow
def test_a_hundred_thousand_passages(tmp_path):
    passages = (
        Passage(str(i), f"Person {i}", f"name{i} lives in city{i % 997}, year {i % 211}.") for i in range(100_000)
    )
    seen = []
    build_index(passages, tmp_path / "index", progress=seen.append)
    assert len(seen) > 10 and seen == sorted(seen) and seen[-1] == 100_000
    index = Bm25Index.open(tmp_path / "index")
    assert index.search("name77123", 3)[0].passage.id == "77123"
    assert [hit.passage.id for hit in index.search("year 210", 3)] == ["210", "421", "632"]
