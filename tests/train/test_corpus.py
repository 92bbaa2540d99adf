"""The corpus's hash in meta.json, and what a resume and an evaluation say of another corpus."""

import hashlib
import json
from functools import partial

import pytest

from agentrl.cli import main
from agentrl.envs.search import SearchEnv
from agentrl.envs.search_tools import SearchToolsEnv
from agentrl.envs.tools import ToolEnv
from agentrl.retriever.bm25 import Bm25Index
from agentrl.retriever.building import build_index
from agentrl.retriever.corpus import Passage
from agentrl.runs.files import read_json
from agentrl.train.corpus import changed_corpus, corpus_of
from agentrl.train.start import resume_run
from tests.small import small_config, train_until

PASSAGES = [Passage(str(i), f"t{i}", f"word{i} stands here") for i in range(4)]


@pytest.fixture
def index(tmp_path):
    build_index(iter(PASSAGES), tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("env", [SearchEnv, SearchToolsEnv])
def test_it_is_the_hash_of_the_passages(index, env):
    lines = (index / "passages.jsonl").read_bytes()
    told = {"corpus": {"sha256": hashlib.sha256(lines).hexdigest(), "passages": 4}}
    assert corpus_of(partial(env, retriever=str(index))) == told


def test_nothing_is_said_where_nothing_is_known():
    assert corpus_of(partial(ToolEnv, tools=["calculator"])) == {}
    assert corpus_of(partial(SearchEnv, retriever=Bm25Index.from_passages(PASSAGES))) == {}


def test_another_corpus_is_named(index, tmp_path):
    make = partial(SearchEnv, retriever=str(index))
    meta = tmp_path / "meta.json"
    for noted, lines in ((corpus_of(make), 0), ({}, 0), ({"corpus": {"sha256": "0" * 64, "passages": 9}}, 1)):
        meta.write_text(json.dumps(noted))
        said = changed_corpus(make, tmp_path)
        assert len(said) == lines
    assert "(9 passages, SHA-256 000000000000; now 4 passages, SHA-256" in said[0]


@pytest.mark.slow
def test_a_run_notes_it_and_says_when_it_changed(tmp_path, capsys):
    run = train_until(small_config(tmp_path, train={"steps": 3}, eval={"questions": 2}), steps=1)
    noted = read_json(run / "meta.json")
    lines = (run / "index" / "passages.jsonl").read_bytes()
    assert noted["corpus"]["sha256"] == hashlib.sha256(lines).hexdigest()
    (run / "meta.json").write_text(json.dumps(noted | {"corpus": noted["corpus"] | {"sha256": "f" * 64}}))
    capsys.readouterr()
    assert main(["eval", str(run), "--questions", "2"]) == 0
    assert f"the corpus is not the one that {run} began with" in capsys.readouterr().err
    resume_run(run)
    assert f"the corpus is not the one that {run} began with" in capsys.readouterr().err
