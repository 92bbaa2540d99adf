"""Checkpoints are complete or absent, and a damaged one is named and passed over."""

import errno
import json
import os

import pytest

from agentrl.errors import RunError
from agentrl.runs import checkpoint
from agentrl.runs.checkpoint import (
    best_step,
    checkpoint_at,
    clean_leftovers,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    run_of_checkpoint,
    save_checkpoint,
    verify,
)
from tests.small import files_of


def writer(text):
    def write(folder):
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text * 100)
        (folder / "optimizer").write_text(text)

    return write


def save(run, *steps, keep=9):
    for step in steps:
        path = save_checkpoint(run, step, writer(f"w{step} "), {"step": step, "probe": [0.5]}, keep=keep)
    return path


def steps(run):
    return [step for step, _ in list_checkpoints(run)]


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_is_saved_comes_back(tmp_path):
    path = save(tmp_path, 5)
    assert path == tmp_path / "checkpoints" / "step-000005" and verify(path) == []
    assert latest_checkpoint(tmp_path) == (path, {"step": 5, "probe": [0.5]})
    manifest = json.loads((path / "manifest.json").read_text())
    assert (
        set(manifest["files"])
        == {"model/weights", "optimizer", "state.json"}
        == set(files_of(path)) - {"manifest.json"}
    )
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]


def test_none_at_all(tmp_path):
    assert latest_checkpoint(tmp_path) is None and steps(tmp_path) == []
    with pytest.raises(RunError, match="has no checkpoint yet"):
        checkpoint_at(tmp_path)


def test_only_the_newest_are_kept_and_the_future_is_forgotten(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert steps(tmp_path) == [3, 4]
    save(tmp_path, 10, keep=9)
    save(tmp_path, 5, keep=2)  # a resume went back to step 4 and has come to 5
    assert steps(tmp_path) == [4, 5]
    save(tmp_path, 6, keep=0)
    assert steps(tmp_path) == [6]


def link(run):
    path = run / "checkpoints" / "best"
    return os.readlink(path) if path.is_symlink() else None


def test_the_best_is_kept_and_linked(tmp_path):
    assert best_step(tmp_path) is None
    with pytest.raises(RunError, match=r"has no checkpoint yet"):
        checkpoint_at(tmp_path, "best")
    save(tmp_path, 1, keep=1)
    with pytest.raises(RunError, match=r"no best checkpoint: log.keep_best"):
        checkpoint_at(tmp_path, "best")
    save_checkpoint(tmp_path, 2, writer("two "), {"step": 2}, keep=1, best=True)
    save(tmp_path, 3, 4, keep=1)
    assert steps(tmp_path) == [2, 4] and link(tmp_path) == "step-000002" and best_step(tmp_path) == 2
    assert checkpoint_at(tmp_path, "best") == tmp_path / "checkpoints" / "step-000002"
    assert read_checkpoint(tmp_path, "best")[1] == {"step": 2}
    assert (tmp_path / "checkpoints" / "best" / "model" / "weights").is_file()
    assert latest_checkpoint(tmp_path)[1]["step"] == 4  # the best is not the newest
    save_checkpoint(tmp_path, 5, writer("five "), {"step": 5}, keep=1, best=True)
    assert steps(tmp_path) == [5] and link(tmp_path) == "step-000005"  # the former best is an old one
    moved = tmp_path.with_name("moved")
    os.rename(tmp_path, moved)
    assert best_step(moved) == 5 and (moved / "checkpoints" / "best" / "state.json").is_file()
    os.rename(moved, tmp_path)


def test_a_best_of_the_future_goes_with_it(tmp_path):
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 5, writer("five "), {"step": 5}, keep=2, best=True)
    save(tmp_path, 2)  # a resume went back to step 1
    assert (
        steps(tmp_path) == [1, 2] and best_step(tmp_path) is None and "best" not in os.listdir(tmp_path / "checkpoints")
    )


def test_without_links_a_file_names_the_best(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("this file system has no links")

    monkeypatch.setattr(os, "symlink", refuse)
    save_checkpoint(tmp_path, 1, writer("x"), {"step": 1}, keep=1, best=True)
    save(tmp_path, 2, 3, keep=1)
    assert link(tmp_path) is None and best_step(tmp_path) == 1 and steps(tmp_path) == [1, 3]


def test_a_checkpoint_folder_knows_its_run(tmp_path):
    save(tmp_path, 1)
    path = save_checkpoint(tmp_path, 2, writer("x"), {"step": 2}, keep=9, best=True)
    assert run_of_checkpoint(path) == run_of_checkpoint(tmp_path / "checkpoints" / "best") == (tmp_path, 2)
    assert run_of_checkpoint(tmp_path) is None and run_of_checkpoint(path / "model") == (tmp_path, 2)


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path):
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, writer("other"), {"step": 3}, keep=2)
    assert (tmp_path / "checkpoints" / "step-000003" / "optimizer").read_text() == "other"
    assert os.listdir(tmp_path / "checkpoints") == ["step-000003"]


@pytest.mark.parametrize("name", ["model/weights", "optimizer", "state.json", "manifest.json"])
def test_one_flipped_bit_is_named_and_the_previous_is_used(tmp_path, name):
    save(tmp_path, 1, 2)
    good, bad = (path for _, path in list_checkpoints(tmp_path))
    flip_a_bit(bad / name)
    said = []
    assert latest_checkpoint(tmp_path, say=said.append) == (good, {"step": 1, "probe": [0.5]})
    [line] = said
    assert line.startswith("checkpoint step-000002 is damaged and will not be used: ") and str(bad) in line
    with pytest.raises(RunError, match=r"checkpoint step-000002 is damaged: .*take another of \[1, 2\]"):
        checkpoint_at(tmp_path, 2)
    assert checkpoint_at(tmp_path, 1) == checkpoint_at(tmp_path) == good


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "optimizer").unlink(), "optimizer cannot be read"),
        (lambda p: (p / "optimizer").write_text("x" * 7), "optimizer has 7 bytes instead of 3"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
        (lambda p: (p / "manifest.json").write_text('{"files": {}}'), "does not name state.json"),
        (lambda p: flip_a_bit(p / "optimizer"), "optimizer was changed after it was written"),
    ],
)
def test_damage_is_explained(tmp_path, damage, message):
    path = save(tmp_path, 4)
    damage(path)
    assert message in "; ".join(verify(path))
    with pytest.raises(RunError, match=r"no checkpoint is whole .*Restore one from a copy, or train again"):
        latest_checkpoint(tmp_path, say=lambda line: None)


def test_steps_that_are_not_there(tmp_path):
    save(tmp_path, 1, 20)
    with pytest.raises(RunError, match="no checkpoint of step 3; there are 1, 20"):
        checkpoint_at(tmp_path, 3)
    assert latest_checkpoint(tmp_path, at_most=19)[1]["step"] == 1
    assert latest_checkpoint(tmp_path, at_most=0) is None


@pytest.mark.parametrize("where", ["write", "state", "manifest", "sync"])
def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, where):
    save(tmp_path, 1)
    before = files_of(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "state":
        monkeypatch.setattr(checkpoint, "strict_json", full)
    if where == "manifest":
        monkeypatch.setattr(checkpoint, "_seal", full)
    if where == "sync":
        monkeypatch.setattr(os, "fsync", full)  # where a network file system says so
    with pytest.raises(RunError, match=r"the disk is full.*is intact: free some space"):
        save_checkpoint(tmp_path, 2, full if where == "write" else writer("x"), {"step": 2}, keep=1)
    monkeypatch.undo()
    assert files_of(tmp_path) == before and latest_checkpoint(tmp_path)[1]["step"] == 1


def test_ctrl_c_while_saving_leaves_the_earlier_checkpoints(tmp_path):
    save(tmp_path, 1)
    before = files_of(tmp_path)

    def interrupted(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, interrupted, {"step": 2}, keep=1)
    assert files_of(tmp_path) == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up after it."""


@pytest.mark.parametrize("after", range(4))
def test_killed_anywhere_one_whole_checkpoint_remains(tmp_path, monkeypatch, after):
    """Every rename and removal of a save over an existing step is a place to be killed at."""
    save(tmp_path, 1, 2)
    calls = []

    def until_killed(function):
        def call(*args, **kwargs):
            if len(calls) >= after:
                raise Killed
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoint.os, "rename", until_killed(os.rename))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", until_killed(checkpoint.shutil.rmtree))
    try:
        save_checkpoint(tmp_path, 2, writer("new"), {"step": 2, "new": True}, keep=2)
        assert calls == ["rename", "rename", "rmtree"]
    except Killed:
        assert len(calls) == after < 3
    monkeypatch.undo()
    clean_leftovers(tmp_path)
    found, state = latest_checkpoint(tmp_path)
    assert state["step"] == 2 and verify(found) == []
    assert state.get("new", False) == (after >= 2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000001", "step-000002"]


def test_leftovers_are_not_listed_and_go(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    (folder / ".step-000002.tmp").mkdir()
    (folder / "step-x").mkdir()
    (folder / "step-000007").write_text("a file")
    assert steps(tmp_path) == [1]
    clean_leftovers(tmp_path)
    assert not (folder / ".step-000002.tmp").exists() and (folder / "step-x").exists()
    clean_leftovers(tmp_path / "nowhere")
