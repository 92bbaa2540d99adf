"""An index beside the trainer: it answers, ends with its parent, says why it does not start; training uses it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from agentrl.commands.dryrun import report
from agentrl.config import RunConfig
from agentrl.config.files import load_config
from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.client import RetrieverClient
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import IndexOpenError
from agentrl.retriever.opening import OpenedIndex, open_index
from agentrl.retriever.process import IndexProcess, open_beside
from agentrl.train.build import build_world, environment_maker
from tests.retriever.helpers import HASHING, PASSAGES, tiny_encoder


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("process") / "dense"
    build_index(PASSAGES, path, Plan(kind="hybrid", encoder=HASHING))
    return path


def gone(process, seconds=15.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_it_answers_as_in_process_and_ends_with_its_client(dense):
    said = []
    client = open_beside(dense, threads=2, say=said.append)
    assert isinstance(client, RetrieverClient)
    assert client.search_batch(["glass", "Torvik"], 2) == open_index(dense).search_batch(["glass", "Torvik"], 2)
    assert said == [f"the index {dense} gets a process of its own, with 2 encoding threads"]
    (child,) = [c for c in psutil.Process().children() if "--follow-stdin" in c.cmdline()]
    assert child.environ()["OMP_NUM_THREADS"] == "2" and child.cmdline()[-2:] == ["--threads", "2"]
    client.close()
    del client
    assert gone(child)


def test_an_index_of_words_stays_in_the_process(tmp_path):
    build_index(PASSAGES, tmp_path / "words")
    assert isinstance(open_beside(tmp_path / "words", say=print), OpenedIndex)
    assert not [c for c in psutil.Process().children() if "--follow-stdin" in c.cmdline()]


def test_it_ends_when_its_parent_is_killed(dense):
    code = (
        "import sys, time\nfrom agentrl.retriever.process import open_beside\n"
        "client = open_beside(sys.argv[1], say=lambda line: None)\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(dense)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "up\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_it_says_why_it_does_not_start(tmp_path):
    build_index(PASSAGES, tmp_path / "x", Plan(encoder=EncoderSpec("a 16", HASHING.runtime)))
    (tmp_path / "x" / "vectors.f32").write_bytes(b"")
    with pytest.raises(IndexOpenError, match=r"vectors.f32 has 0 bytes, the manifest says"):
        open_beside(tmp_path / "x", say=print)
    with pytest.raises(IndexOpenError, match=r"its process did not start: .*no such index"):
        IndexProcess(tmp_path / "none", threads=1, timeout_s=1, wait_s=1, say=print)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield str(tiny_encoder(tmp_path_factory.mktemp("training") / "tiny-e5"))


@pytest.mark.parametrize("kind", [None, "hybrid"])
def test_the_built_in_world_is_searched_by_meaning_with_one_line(tmp_path, encoder, kind):
    retriever = {"encoder": encoder} | ({"kind": kind} if kind else {})
    config = RunConfig.model_validate({"world": {"kind": "search"}, "retriever": retriever})
    world = build_world(config)
    env = environment_maker(config, world, tmp_path, say=lambda line: None)()
    index = open_index(tmp_path / "index")
    assert index.kind == (kind or "flat") and index.manifest.encoder["name"] == encoder
    searcher = env.unwrapped.searcher
    assert isinstance(searcher, RetrieverClient)
    query = world.passages[3]["text"]
    assert searcher.search_batch([query], 3) == index.search_batch([query], 3)


def test_an_index_of_real_text_with_one_line(tmp_path, dense):
    tasks = tmp_path / "train.jsonl"
    tasks.write_text('{"id": "1", "question": "Who?", "answers": ["Edda Marn"]}\n')
    config = RunConfig.model_validate(
        {"data": {"train": str(tasks)}, "model": {"path": "x"}, "retriever": {"index": str(dense)}}
    )
    env = environment_maker(config, None, tmp_path, say=lambda line: None)()
    assert isinstance(env.unwrapped.searcher, RetrieverClient)
    assert env.unwrapped.searcher.search_batch(["Brightkiln"], 1)[0][0].passage.id == "c"


def test_the_dry_run_says_who_gets_which_threads(tmp_path, dense):
    build_index(PASSAGES, tmp_path / "words")
    path = tmp_path / "c.yaml"

    def shown(**retriever):
        lines = "\n".join(f"  {k}: {v}" for k, v in retriever.items())
        path.write_text(f"data: {{train: x.jsonl}}\nmodel: {{threads: 3, path: builtin:none}}\nretriever:\n{lines}\n")
        return report(load_config(path))

    text = shown(index=dense, threads=2)
    assert "3 of torch (model.threads)" in text
    assert "2 that encode (retriever.threads), in a process of its own" in text
    assert "none: words are searched" in shown(index=tmp_path / "words")
    assert "is no index" in shown(index=tmp_path / "none")
    assert "CPU threads" not in shown(url="http://127.0.0.1:1")
    assert os.sched_getaffinity(0)
