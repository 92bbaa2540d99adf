"""A run's config names its files from any folder."""

import pytest

from agentrl.config import RunConfig
from agentrl.config.paths import with_absolute_paths


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("q.jsonl", "t.jsonl"):
        (tmp_path / name).write_text("{}")
    for name in ("index", "owner/model"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes):
    tree = {"data": {"train": "q.jsonl", "test": "./t.jsonl"}, "model": {"path": "owner/model"}, **changes}
    return RunConfig.model_validate(tree)


def test_what_is_there_gets_its_whole_path(folder):
    given = config(retriever={"index": "index"}, env={"kwargs": {"retriever": "index", "topk": 3}})
    c = with_absolute_paths(given)
    assert (c.data.train, c.data.test) == (f"{folder}/q.jsonl", f"{folder}/t.jsonl")
    assert (c.model.path, c.retriever.index) == (f"{folder}/owner/model", f"{folder}/index")
    assert c.env.kwargs == {"retriever": f"{folder}/index", "topk": 3}
    assert given.data.train == "q.jsonl" and given.env.kwargs["retriever"] == "index"  # a copy
    assert with_absolute_paths(c) == c


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-0.5B", "x" * 5000, "a\0b"])
def test_what_is_not_there_stays(folder, model):
    given = config(data={"train": "recipe:math_3to5", "test": "owner/set"}, model={"path": model},
                   env={"kwargs": {"retriever": "http://127.0.0.1:8000"}})  # fmt: skip
    assert with_absolute_paths(given) == given
