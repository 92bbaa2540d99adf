"""What makes held-out figures doubtful is told, one line each; sound data have none."""

import json

import pytest

from agentrl.config import DataConfig
from agentrl.data.doubts import doubts, duplicates, same_files, shared
from agentrl.types import Task


def tasks(*questions):
    return [Task(str(i), {"question": q}) for i, q in enumerate(questions)]


def test_sound_data_have_no_line():
    assert doubts(DataConfig(), tasks("a", "b"), tasks("c")) == []


def test_questions_in_both_sets_and_those_that_repeat_are_counted():
    train = tasks("Who is it?", "What?", "who  is it? ")
    lines = doubts(DataConfig(), train, tasks("WHO is it?", "Where?", "Where?"))
    assert len(lines) == 3
    assert lines[0].startswith("data.test: 1 of 3 questions are training questions, too (first: 'WHO is it?')")
    assert lines[1] == "data.train: 1 of 3 questions repeat an earlier one (first: 'Who is it?')"
    assert lines[2] == "data.test: 1 of 3 questions repeat an earlier one (first: 'Where?')"
    assert shared("s", train, tasks("x")) == duplicates("s", tasks("x")) == []


def test_one_file_under_two_names(tmp_path):
    a, b, c, link = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "link.jsonl"))
    a.write_text("{}")
    b.write_text("{}")
    c.write_text("{ }")
    link.symlink_to(c)
    found = same_files({"data.train": str(a), "data.test": str(b), "--suite": str(link), "x": str(c), "hub": "a/b"})
    assert found == [
        f"data.train and data.test are one file under two names: {a} and {b}",
        f"--suite and x are one file under two names: {link} and {c}",
    ]


@pytest.mark.parametrize("what", ["dry-run", "build"])
def test_they_are_told_at_the_start_and_in_the_dry_run(tmp_path, warm_model, what):
    from agentrl.commands.dryrun import tried
    from agentrl.train.build import build_job
    from tests.small import small_config

    file = tmp_path / "all.jsonl"
    file.write_text((json.dumps({"question": "school of reno ?", "golden_answers": ["x"]}) + "\n") * 2)
    data = {"train": str(file), "test": str(file)}
    config = small_config(tmp_path, warm_model, world=None, env={"id": "agentrl/Math-v0"}, data=data)
    said = []
    if what == "dry-run":
        said, _ = tried(config)
    else:
        build_job(config, tmp_path, say=said.append).engine.close()
    assert any("one file under two names" in line for line in said)
    assert any("2 of 2 questions are training questions, too" in line for line in said)
    assert sum("repeat an earlier one" in line for line in said) == 2
