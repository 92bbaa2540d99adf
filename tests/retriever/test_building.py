"""Whole builds: what is written, what is refused, what survives a kill and a full disk."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

import agentrl.retriever.bm25 as bm25
import agentrl.retriever.building as building
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.cli import main
from agentrl.retriever.corpus import CorpusReader, Passage
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import CorpusError, EncoderError, IndexBuildError, IndexOpenError
from agentrl.retriever.manifest import read, sha256
from agentrl.retriever.opening import open_index
from tests.retriever.helpers import HASHING, PASSAGES

INDEX = Bm25Index.from_passages(PASSAGES)
ENCODER = ["--encoder", "hashing", "--runtime", "tests.retriever.helpers:Hashing"]


def search(index, query, topk):
    return index.search_batch([query], topk)[0]


def corpus_of(path, passages):
    path.write_text("".join(json.dumps({"id": p.id, "contents": p.contents}) + "\n" for p in passages))
    return path


def numbered(count):
    return [Passage(str(i), f"Person {i}", f"name{i} lives in city{i % 997}.") for i in range(count)]


def test_build_open_and_search_in_a_fresh_process(tmp_path):
    seen = []
    build = build_index(PASSAGES, tmp_path / "deep" / "index", progress=lambda *told: seen.append(told))
    assert build == len(PASSAGES)
    assert ("reading", 5, 5) in seen and seen[-1][0] == "checking"
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


def test_contents_come_back_exactly_and_by_id(tmp_path):
    rows = [
        {"id": 1, "contents": '"Title"\nText with "quotes".\n'},
        {"_id": "no title", "contents": "First line\nsecond"},
        {"id": "empty", "contents": '""\nx'},
        {"id": "ü", "title": None, "text": " spaces kept "},
        {"id": "all", "title": "T", "text": "body", "contents": "T\nbody"},
        {"id": "crlf", "contents": '"T"\r\ntext'},
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(CorpusReader(tmp_path / "c.jsonl"), tmp_path / "index")
    index = open_index(tmp_path / "index")
    expected = [row.get("contents", row.get("text")) for row in rows]
    assert [index.passage(i).contents for i in range(6)] == expected
    assert [index.document(str(row.get("id", row.get("_id")))).contents for row in rows] == expected
    assert index.document("absent") is None and index.document("") is None


def test_an_index_is_replaced_only_when_asked_and_other_folders_never(tmp_path):
    out = tmp_path / "index"
    out.mkdir()  # an empty folder is fine
    build_index(PASSAGES[:2], out)
    with pytest.raises(IndexBuildError, match="an index is there"):
        build_index(PASSAGES, out)
    old = open_index(out)
    build_index(PASSAGES, out, overwrite=True)
    assert len(open_index(out)) == 5
    assert [hit.passage.id for hit in search(old, "torvik", 5)] == ["b", "a"]  # an opened index outlives its files
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

    monkeypatch.setattr(building.PassageWriter, "append", full)
    with pytest.raises(IndexBuildError, match=r"No space left on device.*; check free space"):
        build_index(PASSAGES, out, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]
    assert len(open_index(out)) == 2


def test_opening_says_what_is_wrong(tmp_path):
    with pytest.raises(IndexOpenError, match=r"no such index; build one with `agentrl retriever build CORPUS .*none`"):
        open_index(tmp_path / "none")
    with pytest.raises(IndexOpenError, match="not an index"):
        open_index(tmp_path)
    out = tmp_path / "index"
    build_index(PASSAGES, out)
    meta = json.loads((out / "meta.json").read_text())
    for change, reason in [
        ({"format": 99}, "index format 99, this version reads 2"),
        ({"passages": 4}, "4 passages need 40"),
        ({"kind": "bm52"}, "there is no index 'bm52'; did you mean 'bm25'"),
        ({"files": {}, "kind": "flat"}, "names no encoder"),
        ({"files": meta["files"] | {"gone": {"bytes": 1, "sha256": ""}}}, "gone is missing"),
    ]:
        (out / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(IndexOpenError, match=reason):
            open_index(out)
    (out / "meta.json").write_text(json.dumps(meta))
    lines = (out / "passages.jsonl").read_bytes()
    (out / "passages.jsonl").write_bytes(lines[:-5])
    with pytest.raises(IndexOpenError, match="copied in part or damaged"):
        open_index(out)
    (out / "passages.jsonl").write_bytes(lines.replace(b'"title"', b'"tittl"'))
    with pytest.raises(IndexOpenError, match="line 1 is damaged"):
        search(open_index(out), "Vesna", 1)
    assert main(["verify", str(out)]) == 2
    (out / "passages.jsonl").write_bytes(lines)
    assert main(["verify", str(out)]) == 0


def test_pickled_as_its_path(tmp_path, monkeypatch):
    build_index(PASSAGES, tmp_path / "index")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(open_index("index"))
    monkeypatch.chdir("/")
    assert search(pickle.loads(pickled), "torvik", 2) == search(INDEX, "torvik", 2)
    with pytest.raises(TypeError, match="write it with build_index"):
        pickle.dumps(INDEX)


def test_an_encoder_alone_is_flat_and_many_passages_are_pq(tmp_path, monkeypatch):
    build_index(PASSAGES, tmp_path / "few", Plan(encoder=HASHING))
    assert open_index(tmp_path / "few").kind == "flat"
    monkeypatch.setattr(building, "FLAT_UP_TO", 4)
    build_index(PASSAGES, tmp_path / "many", Plan(encoder=HASHING))
    assert open_index(tmp_path / "many").kind == "pq"
    build_index(PASSAGES, tmp_path / "words")
    assert open_index(tmp_path / "words").kind == "bm25"


@pytest.mark.parametrize(
    ("plan", "error", "reason"),
    [
        (Plan(kind="bm52"), IndexBuildError, "there is no index 'bm52'; did you mean 'bm25'"),
        (Plan(kind="flat"), IndexBuildError, "kind flat needs an encoder: add --encoder"),
        (Plan(kind="bm25", encoder=HASHING), IndexBuildError, "takes no encoder.*--kind hybrid"),
        (Plan(kind="hybrid", encoder=HASHING, options={"dense": "bm25"}), IndexBuildError, "cannot be bm25"),
        (Plan(kind="hnsw", encoder=HASHING, memory_bytes=1000), IndexBuildError, "raise --memory, or choose"),
        (Plan(encoder=EncoderSpec("/no/folder")), EncoderError, "no such folder"),
    ],
)
def test_plans_that_cannot_be(tmp_path, plan, error, reason):
    with pytest.raises(error, match=reason):
        build_index(PASSAGES, tmp_path / "index", plan)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_holds_versions_and_hashes(tmp_path):
    build_index(PASSAGES, tmp_path / "index", Plan(kind="pq", encoder=HASHING))
    manifest = read(tmp_path / "index")
    assert {"passages.jsonl", "offsets.u64", "ids.u64", "vectors.f32", "index.faiss"} == set(manifest.files)
    for name, (size, digest) in manifest.files.items():
        assert size == (tmp_path / "index" / name).stat().st_size and digest == sha256(tmp_path / "index" / name)
    assert {"faiss-cpu", "numpy", "tokenizers"} <= set(manifest.versions)
    assert manifest.encoder["name"] == manifest.encoder["sha256"] == "hashing"


def test_duplicate_ids_name_file_and_lines(tmp_path):
    file = corpus_of(tmp_path / "c.jsonl", [*PASSAGES[:3], Passage("b", "again", "text"), PASSAGES[3]])
    file.write_text("\n" + file.read_text())
    with pytest.raises(CorpusError, match=r"c\.jsonl, lines 3 and 5: 1 ids come twice \(id 'b' of passages 2 and 4\)"):
        build_index(CorpusReader(file), tmp_path / "index")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]
    reader = CorpusReader(file, skip_bad=0.01)
    assert build_index(reader, tmp_path / "index") == 5 and reader.duplicates == 1
    assert open_index(tmp_path / "index").document("b").title == "Torvik"


def test_a_passage_of_a_megabyte_is_kept_whole(tmp_path):
    big = Passage("big", "", "kiln " * 200_000)
    for plan in (Plan(), Plan(encoder=HASHING)):
        build_index([*PASSAGES, big], tmp_path / "index", plan, overwrite=True)
        assert open_index(tmp_path / "index").document("big") == big


def run_build(*arguments, env=None, **kwargs):
    command = [sys.executable, "-m", "agentrl.retriever", "build", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | (env or {}), stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.slow
def test_a_killed_build_goes_on_without_redoing_finished_shards(tmp_path, monkeypatch):
    passages = numbered(10_000)
    corpus = corpus_of(tmp_path / "c.jsonl", passages)
    log = tmp_path / "encoded"
    encoder = ["--encoder", "counting 8", "--runtime", "tests.retriever.helpers:Counting"]
    process = run_build(corpus, tmp_path / "index", *encoder, env={"ENCODED": str(log)})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "index").exists()
    state = json.loads((tmp_path / ".index.building" / ".state.json").read_text())
    done = state["kept"]["encoded"]
    assert done >= 4_096 and state["stored"]
    log.unlink()
    with (tmp_path / ".index.building" / "vectors.f32").open("ab") as file:
        file.write(b"half a vector")  # what a kill leaves behind a whole shard is cut off
    finished = run_build(corpus, tmp_path / "index", *encoder, env={"ENCODED": str(log)})
    assert finished.wait(60) == 0, finished.stderr.read()
    finished.stderr.close()
    encoded = sum(map(int, log.read_text().split()))
    assert encoded == 10_000 - done
    assert [entry.name for entry in (tmp_path / "index").iterdir() if entry.name[0] == "."] == []
    monkeypatch.setenv("ENCODED", str(log))
    build_index(passages, tmp_path / "straight", Plan(encoder=open_index(tmp_path / "index").index._encoder.spec))
    for name in ("passages.jsonl", "vectors.f32"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert search(open_index(tmp_path / "index"), passages[7123].contents, 1)[0].passage.id == "7123"


def test_words_go_on_from_the_last_commit_and_the_store_from_its_last_flush(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_STORED_AT_ONCE", 1_000)
    monkeypatch.setattr(bm25, "_COMMIT_EVERY", 1_000)
    passages = numbered(5_000)
    corpus = corpus_of(tmp_path / "c.jsonl", passages)

    class Killed(BaseException):
        pass

    original = building.PassageWriter.append
    calls = []

    def append(self, passage):
        calls.append(passage.id)
        if len(calls) == 2_500:
            raise Killed
        original(self, passage)

    monkeypatch.setattr(building.PassageWriter, "append", append)
    with pytest.raises(Killed):
        build_index(CorpusReader(corpus), tmp_path / "index")
    calls[:] = [""] * 10_000
    added = []

    def document(row, passage, original=bm25._document):
        added.append(row)
        if len(added) == 3_500:
            raise Killed
        return original(row, passage)

    monkeypatch.setattr(bm25, "_document", document)
    with pytest.raises(Killed):
        build_index(CorpusReader(corpus), tmp_path / "index")
    assert calls[10_000:] == [str(i) for i in range(2_000, 5_000)]
    added[:] = [-1] * 5_000
    assert build_index(CorpusReader(corpus), tmp_path / "index") == 5_000
    assert len(calls) == 13_000 and added[5_000:] == list(range(3_000, 5_000))
    index = open_index(tmp_path / "index")
    expected = Bm25Index.from_passages(passages)
    for query in ("name77", "city996", "lives in city5"):
        assert search(index, query, 7) == search(expected, query, 7)


def test_another_plan_or_corpus_starts_anew_and_two_builds_at_once_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_STORED_AT_ONCE", 2)
    corpus = corpus_of(tmp_path / "c.jsonl", PASSAGES)

    def stop(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(building, "write_ids", stop)
        with pytest.raises(IndexBuildError, match=r"No space left.*; the same command then goes on where it stopped"):
            build_index(CorpusReader(corpus), tmp_path / "index")
    assert (tmp_path / ".index.building").is_dir()
    corpus_of(corpus, PASSAGES[:4])
    assert build_index(CorpusReader(corpus), tmp_path / "index") == 4
    (tmp_path / ".index.building").mkdir()
    with (tmp_path / ".index.building" / ".lock").open("w") as lock:
        building.fcntl.flock(lock, building.fcntl.LOCK_EX)
        with pytest.raises(IndexBuildError, match="another build of it is running"):
            build_index(CorpusReader(corpus), tmp_path / "index", overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ENCODER], ids=["bm25", "flat"])
def test_a_full_disk(tmp_path, arguments):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        corpus = corpus_of(tmp_path / "c.jsonl", numbered(30_000))
        failed = run_build(corpus, small / "index", *arguments)
        message = failed.communicate(timeout=120)[1]
        assert failed.returncode == 2 and "No space left on device" in message and "check free space" in message
        assert len([line for line in message.splitlines() if line.startswith("error: ")]) == 1
        assert not (small / "index").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        finished = run_build(corpus, small / "index", *arguments)
        assert finished.wait(120) == 0, finished.stderr.read()
        finished.stderr.close()
        assert len(open_index(small / "index")) == 30_000
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.slow
def test_a_hundred_thousand_passages(tmp_path):
    passages = (
        Passage(str(i), f"Person {i}", f"name{i} lives in city{i % 997}, year {i % 211}.") for i in range(100_000)
    )
    seen = []
    build_index(passages, tmp_path / "index", progress=lambda *told: seen.append(told))
    counts = [done for stage, done, _ in seen if stage == "reading"]
    assert len(counts) > 10 and counts == sorted(counts) and counts[-1] == 100_000
    index = open_index(tmp_path / "index")
    assert search(index, "name77123", 3)[0].passage.id == "77123"
    assert [hit.passage.id for hit in search(index, "year 210", 3)] == ["210", "421", "632"]
