"""The dense kinds against brute force, hybrid against its formula, and everything that must not be opened."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.plugins import BUILTIN
from agentrl.retriever.base import Build, Opening
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.cli import main
from agentrl.retriever.corpus import CorpusReader, Passage
from agentrl.retriever.dense import best
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import BadQuery, IndexBuildError, IndexOpenError
from agentrl.retriever.indexes.flat import _merged
from agentrl.retriever.indexes.hybrid import fuse
from agentrl.retriever.indexes.ivf_pq import IvfPqIndex, cells
from agentrl.retriever.opening import open_fresh, open_index
from tests.retriever.helpers import HASHING, PASSAGES, Hashing

WIDE = EncoderSpec("wide 64", runtime=HASHING.runtime)
DENSE = ["flat", "pq", "hnsw", "ivf-pq", "qdrant"]
WORDS = [f"w{i}" for i in range(400)]


def passages(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Passage(f"p{i}", f"Name{i}", " ".join(rng.choice(WORDS, 12))) for i in range(count)]


CORPUS = passages(6_000)


@pytest.fixture(scope="module", params=DENSE)
def built(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / request.param
    build_index(CORPUS, out, Plan(kind=request.param, encoder=WIDE))
    return open_index(out)


def write_corpus(path, passages):
    lines = (json.dumps({"id": str(i), "contents": p.contents}) for i, p in enumerate(passages))
    path.write_text("\n".join(lines) + "\n")


def brute_force(queries, topk):
    """Ids of the nearest passages, from the encoder and numpy alone."""
    encoder = Hashing(WIDE, None, 1)
    scores = encoder.encode(queries) @ encoder.encode([p.contents for p in CORPUS]).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
    return [[CORPUS[i].id for i in row] for row in order], np.take_along_axis(scores, order, 1)


def test_each_kind_finds_what_brute_force_finds(built):
    rng = np.random.default_rng(1)
    queries = [" ".join(rng.choice(WORDS, 5)) for _ in range(100)]
    expected, scores = brute_force(queries, 3)
    found = built.search_batch(queries, 3)
    overlap = np.mean([len({h.passage.id for h in hits} & set(ids)) / 3 for hits, ids in zip(found, expected)])
    least = {"pq": 0.95, "hnsw": 0.95, "ivf-pq": 0.7}  # vectors without any clusters are ivf's worst case
    assert overlap >= least.get(built.kind, 1.0)
    for hits, ids, row in zip(found, expected, scores):  # scores are exact wherever the passage was found
        for hit in hits:
            if hit.passage.id in ids:
                assert hit.score == pytest.approx(row[ids.index(hit.passage.id)], abs=1e-5)
    assert [built.search_batch([query], 3)[0] for query in queries[:5]] == found[:5]


def test_more_than_there_are_and_queries_of_all_sorts(built):
    assert len(built.search_batch(["w1"], 10**9)[0]) <= len(CORPUS)
    hits, empty, surrogate = built.search_batch(["Name17 w3", "  ", "\ud800 w3 \x00"], 2)
    assert len(hits) == 2 and empty == [] and len(surrogate) == 2
    assert built.search_batch([], 2) == []
    for queries, topk in [(["x"], 0), ("x", 1), ([None], 1)]:
        with pytest.raises(BadQuery):
            built.search_batch(queries, topk)


def test_it_says_what_it_is(built):
    described = built.describe()
    assert described["kind"] == built.kind and described["passages"] == len(CORPUS)
    assert described["encoder"]["name"] == "wide 64"
    assert built.document("p4711") == CORPUS[4711]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_re_ranking_is_exact_and_keeps_the_corpus_order(count, topk, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (count, 2)).astype(np.float32)  # with many equal scores
    query = rng.integers(-2, 3, 2).astype(np.float32)
    rows = rng.permutation(count)[: rng.integers(0, count + 1)]
    expected = sorted((-float(vectors[r] @ query), int(r)) for r in rows)[:topk]
    assert best(query, rows, vectors, topk) == [(r, -s) for s, r in expected]


def test_blocks_of_a_flat_search_are_merged(monkeypatch):
    import faiss

    monkeypatch.setattr("agentrl.retriever.indexes.flat._BLOCK", 7)
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((40, 8), dtype="f4"), rng.standard_normal((5, 8), dtype="f4")
    rows = _merged(queries, vectors, 9, lambda q, v, n: faiss.knn(q, v, n, faiss.METRIC_INNER_PRODUCT))
    assert (rows == np.argsort(-(queries @ vectors.T), axis=1)[:, :9]).all()


@given(st.lists(st.lists(st.integers(0, 12), unique=True, max_size=8), min_size=1, max_size=3))
def test_fusion_follows_the_formula(lists):
    ranked = [[(row, 0.0) for row in rows] for rows in lists]
    expected = {}
    for row in {r for rows in lists for r in rows}:
        expected[row] = sum(1 / (60 + rows.index(row) + 1) for rows in lists if row in rows)
    fused = fuse(ranked)
    assert dict(fused) == pytest.approx(expected)
    assert [row for row, _ in fused] == sorted(expected, key=lambda row: (-dict(fused)[row], row))


def test_hybrid_is_the_fusion_of_its_halves(tmp_path):
    build_index(CORPUS, tmp_path / "both", Plan(kind="hybrid", encoder=WIDE))
    build_index(CORPUS, tmp_path / "dense", Plan(kind="flat", encoder=WIDE))
    queries = ["Name17", "w1 w2 w3", "Name5 w9"]
    words = Bm25Index.from_passages(CORPUS).rank(queries, 30)
    meaning = open_index(tmp_path / "dense").index.rank(queries, 30)
    expected = [[CORPUS[row].id for row, _ in fuse(both)[:5]] for both in zip(words, meaning)]
    found = open_index(tmp_path / "both").search_batch(queries, 5)
    assert [[hit.passage.id for hit in hits] for hits in found] == expected
    assert found[0][0].passage.id == "p17" and open_index(tmp_path / "both").manifest.options["dense"] == "flat"


def test_few_passages_are_enough_for_every_kind(tmp_path):
    for kind in [*DENSE, "hybrid"]:
        build_index(PASSAGES, tmp_path / kind, Plan(kind=kind, encoder=HASHING))
        assert open_index(tmp_path / kind).search_batch(["Brightkiln glass"], 1)[0][0].passage.id == "c"
    assert set(BUILTIN["index"]) == {*DENSE, "hybrid", "bm25", "faiss-file"}
    assert cells(1_000_000) == 4096 and IvfPqIndex.memory_needed(10**6, 384) < 2**28


def test_another_encoder_a_changed_file_and_a_store_that_does_not_match(tmp_path):
    out = tmp_path / "index"
    build_index(CORPUS[:300], out, Plan(kind="pq", encoder=WIDE))
    with pytest.raises(IndexOpenError, match=r"built with vectors of 64, encoder other 16 makes 16"):
        open_fresh(out, Opening(encoder="other 16"))
    with pytest.raises(IndexOpenError, match=r"built with another encoder than other 64 is now"):
        open_fresh(out, Opening(encoder="other 64"))
    open_fresh(out, Opening(encoder="other 64", trust=True))
    index, meta = out / "index.faiss", json.loads((out / "meta.json").read_text())
    whole = index.read_bytes()
    index.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IndexOpenError, match="its SHA-256 is not the manifest's, so it is not opened"):
        open_fresh(out, Opening())
    open_fresh(out, Opening(trust=True))
    index.write_bytes(b"x" * len(whole))
    with pytest.raises(IndexOpenError, match="faiss cannot read it"):
        open_fresh(out, Opening(trust=True))
    index.write_bytes(whole)
    shutil.copy(out / "index.faiss", tmp_path / "300.faiss")
    build_index(CORPUS[:400], out, Plan(kind="pq", encoder=WIDE), overwrite=True)
    shutil.copy(tmp_path / "300.faiss", index)
    meta = json.loads((out / "meta.json").read_text())
    meta["files"]["index.faiss"]["bytes"] = index.stat().st_size
    (out / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(IndexOpenError, match="has 300 vectors of 64, 400 of 64 are stored"):
        open_fresh(out, Opening(trust=True))
    vectors = out / "vectors.f32"
    vectors.write_bytes(vectors.read_bytes()[:-256])
    meta["files"]["vectors.f32"]["bytes"] -= 256
    (out / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(IndexOpenError, match="400 passages of dimension 64 need 102400"):
        open_fresh(out, Opening(trust=True))


def test_an_index_that_does_not_find_its_own_vectors_is_refused(tmp_path, monkeypatch):
    class Blind(IvfPqIndex):
        @classmethod
        def make(cls, vectors, build):
            return IvfPqIndex.make(np.ascontiguousarray(vectors[::-1]), build)

    monkeypatch.setattr(sys.modules[__name__], "Blind", Blind, raising=False)
    with pytest.raises(IndexBuildError, match="are not found by their own vectors; build the index anew"):
        build_index(CORPUS, tmp_path / "index", Plan(kind=f"{__name__}:Blind", encoder=WIDE))
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_open_where_they_stand(tmp_path, capsys):
    """The form of Search-R1's published `wiki-18.jsonl` and `e5_Flat.index`."""
    import faiss

    corpus = tmp_path / "wiki-18.jsonl"
    write_corpus(corpus, CORPUS)
    index = faiss.index_factory(64, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(Hashing(WIDE, None, 1).encode([p.contents for p in CORPUS]))
    faiss.write_index(index, str(tmp_path / "e5_Flat.index"))
    before = {path: path.stat().st_mtime for path in tmp_path.iterdir()}
    arguments = ["build", str(corpus), str(tmp_path / "out"), "--faiss", str(tmp_path / "e5_Flat.index")]
    arguments += ["--encoder", "wide 64", "--runtime", HASHING.runtime]
    assert main(arguments) == 2 and "add --trust" in capsys.readouterr().err
    assert main([*arguments, "--trust"]) == 0
    assert {path: path.stat().st_mtime for path in before} == before
    size = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert size < corpus.stat().st_size / 2  # offsets and ids only
    opened = open_index(tmp_path / "out")
    expected, _ = brute_force(["w5 w6 w7", "Name99"], 4)
    found = opened.search_batch(["w5 w6 w7", "Name99"], 4)
    assert [[f"p{h.passage.id}" for h in hits] for hits in found] == expected
    assert found[1][0].passage.contents == CORPUS[int(expected[1][0][1:])].contents
    assert opened.document("99").title == "Name99" and found[0][0].score > found[0][3].score
    corpus.write_text(corpus.read_text() + '{"id": "more", "contents": "x"}\n')
    with pytest.raises(IndexOpenError, match=r"wiki-18.jsonl has \d+ bytes, the manifest says"):
        open_fresh(tmp_path / "out", Opening())


@pytest.mark.parametrize(
    ("rows", "encoder", "reason"),
    [(5_999, "wide 64", "has 6000 vectors, the corpus 5999 passages"), (6_000, "wide 32", "vectors of 64, encoder")],
)
def test_files_of_others_that_do_not_go_together(tmp_path, rows, encoder, reason):
    import faiss

    corpus = tmp_path / "c.jsonl"
    write_corpus(corpus, CORPUS[:rows])
    index = faiss.IndexFlatIP(64)
    index.add(np.zeros((6_000, 64), dtype="f4"))
    faiss.write_index(index, str(tmp_path / "x.index"))
    plan = Plan(
        kind="faiss-file", encoder=EncoderSpec(encoder, HASHING.runtime), options={"faiss": str(tmp_path / "x.index")}
    )
    with pytest.raises(IndexBuildError, match=reason):
        build_index(CorpusReader(corpus), tmp_path / "out", plan)


def test_nothing_is_pickled_and_light_modules_stay_light():
    code = (
        "import sys\n"
        "from agentrl.retriever import building, dense, opening\n"
        "from agentrl.retriever.encoders import onnx_runtime, torch_runtime\n"
        "from agentrl.retriever.indexes import faiss_file, flat, hnsw, hybrid, ivf_pq, pq, qdrant\n"
        "assert not {'torch', 'faiss', 'numpy', 'onnxruntime', 'transformers', 'qdrant_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_build_reports_its_progress(tmp_path):
    told = []
    build_index(CORPUS[:100], tmp_path / "x", Plan(kind="pq", encoder=WIDE), progress=lambda *a: told.append(a))
    assert ("encoding", 100, 100) in told and {"reading", "building pq", "adding to pq", "hashing"} <= {
        t[0] for t in told
    }
    assert Build(tmp_path, []).memory_bytes == 4 << 30
