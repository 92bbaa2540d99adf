"""The run directory: what is written comes back, nothing is overwritten, only the writer mends torn files."""

import gzip
import json
import math
import os
import shlex
from dataclasses import asdict

import pytest

from agentrl.config.files import config_hash, load_config
from agentrl.errors import RunError
from agentrl.runs import log
from agentrl.runs.checkpoint import save_checkpoint
from agentrl.runs.log import RunLog
from agentrl.runs.read import (
    acknowledge,
    beats_best,
    find_run,
    how_to_go_on,
    list_runs,
    read_alarms,
    read_eval_rollouts,
    read_evals,
    read_info,
    read_metrics,
    read_rollouts,
    rollout_steps,
)
from agentrl.types import Alarm, StepRecord
from tests.small import files_of, small_config


@pytest.fixture
def said():
    return []


@pytest.fixture
def create(tmp_path, said):
    def make(name="a", force=False, **changes):
        return RunLog.create(
            tmp_path, name, small_config(tmp_path, **changes), force=force, argv=["x"], say=said.append
        )

    return make


def alarm(step, rule="entropy", **fields):
    return Alarm(f"{rule}-{step}", step, rule, "warn", "text", {"entropy": {"value": 0.1, "threshold": 0.2}}, **fields)


def fill(run, steps):
    for step in steps:
        run.append(StepRecord(step, {"reward": step / 10}), tokens=10 * (step + 1))
        run.write_rollouts(step, [{"sample_id": f"s{step}"}])
        run.alarm(alarm(step))
    return run


# ------------------------------------------------------------------------------------------------------------ beginning


def test_a_new_run_says_what_it_is(create, tmp_path):
    config = small_config(tmp_path)
    with create() as run:
        assert load_config(run.path).config == config
        meta = json.loads((run.path / "meta.json").read_text())
        assert meta["config_hash"] == config_hash(config) and meta["seed"] == 3 and meta["argv"] == ["x"]
        assert meta["versions"]["torch"].startswith("2.") and meta["seeds"] == {"run": 3, "world": 3}
        run.update_meta({"warm_start": {"loss": math.nan}})
        assert json.loads((run.path / "meta.json").read_text())["warm_start"] == {"loss": None}
        status = run.status()
        assert (status["status"], status["step"], status["steps"]) == ("running", 0, 2)
        assert "resume" not in status  # nothing can be resumed yet


def test_a_run_is_never_overwritten_without_force(create):
    with create() as run:
        fill(run, range(2))
    before = files_of(run.path)
    with pytest.raises(
        RunError, match=r"already holds a run. Go on with it \(agentrl resume .*--set log.name=.*--force"
    ):
        create()
    assert files_of(run.path) == before
    with create(force=True) as run:
        assert read_metrics(run.path) == [] and rollout_steps(run.path) == []


def test_force_deletes_nothing_that_is_in_use_or_no_run(create, tmp_path):
    with create():
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            create(force=True)
        assert (tmp_path / "a" / "config.yaml").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("precious")
    with pytest.raises(RunError, match="exists and is not a run directory, so it is left alone"):
        create("thesis", force=True)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        create("file", force=True)
    (tmp_path / "empty").mkdir()
    create("empty").close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "a\\b", "a\0b"])
def test_names_that_are_no_folder(create, name):
    with pytest.raises(RunError, match=r"log.name is .*use letters"):
        create(name)


def test_where_nothing_may_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="file"):
        RunLog.create(tmp_path / "file" / "runs", "a", small_config(tmp_path))


# --------------------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, "finished", ""),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (ValueError("why"), "failed", "ValueError: why"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
)
def test_how_a_run_ended(create, error, status, message):
    try:
        with create() as run:
            if error is not None:
                raise error
            run.set_status("finished", step=2)
    except BaseException as caught:
        assert caught is error
    info = read_info(run.path)
    assert (info.status, info.message, info.steps) == (status, message, 2)
    RunLog.open(run.path).close()  # the lock was given back


def test_a_status_that_was_set_is_kept_when_an_error_follows(create):
    with pytest.raises(RunError), create() as run:
        run.set_status("failed", message="non-finite gradients")
        raise RunError("text")
    assert read_info(run.path).message == "non-finite gradients"


def test_on_a_full_disk_the_first_error_is_shown(create, monkeypatch, said):
    def full(*_, **__):
        raise RunError("second")

    with pytest.raises(ValueError, match="first"), create() as run:
        monkeypatch.setattr(log, "atomic_write", full)
        raise ValueError("first")
    assert said == ["second"]
    RunLog.open(run.path).close()


def test_a_run_whose_process_is_gone_is_stopped(create):
    run = create()
    assert read_info(run.path).status == "running"
    run.close()  # the status still says running, as after a kill
    info = read_info(run.path)
    again = f"agentrl train {run.path}/config.yaml --set log.runs_dir={run.path.parent} --set log.name=a --force"
    assert info.status == "stopped" and info.message == f"its process is gone; {again}"
    (run.path / "checkpoints" / "step-000002").mkdir(parents=True)
    assert read_info(run.path).message == f"its process is gone; agentrl resume {run.path}"


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_come_back(create):
    with create() as run:
        fill(run, range(3))
        run.evaluation({"step": 0, "split": "test", "em": 0.25, "n": 8})
        run.write_eval_rollouts(0, [{"x": 1}])
    rows = read_metrics(run.path)
    assert [(r["step"], r["tokens"], r["reward"]) for r in rows] == [(0, 10, 0.0), (1, 20, 0.1), (2, 30, 0.2)]
    assert rows[0]["time"] > 1e9 and read_metrics(run.path, tail=2) == rows[1:]
    [evaluation] = read_evals(run.path)
    assert (evaluation["em"], evaluation["step"]) == (0.25, 0)
    assert read_rollouts(run.path, 1) == [{"sample_id": "s1"}] and rollout_steps(run.path) == [0, 1, 2]
    assert read_eval_rollouts(run.path) == read_eval_rollouts(run.path, 0) == [{"x": 1}]
    assert rollout_steps(run.path, "eval") == [0]
    assert read_alarms(run.path)[2] == asdict(alarm(2))


def test_what_is_not_finite_is_null_and_named(create):
    with create() as run:
        run.append(StepRecord(0, {"grad_norm": math.nan, "loss": math.inf, "reward": 1.0}))
    text = (run.path / "metrics.jsonl").read_text()
    [row] = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert (
        row["grad_norm"] is row["loss"] is None and row["nonfinite"] == ["grad_norm", "loss"] and row["reward"] == 1.0
    )


def test_rollouts_that_are_missing_or_damaged(create):
    with create() as run:
        fill(run, (0, 2))
    with pytest.raises(RunError, match="no rollouts of step 1: stored are 0 to 2"):
        read_rollouts(run.path, 1)
    with pytest.raises(RunError, match="no rollouts of eval 1: none are stored"):
        read_rollouts(run.path, 1, "eval")
    file = run.path / "rollouts" / "step-000002.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"step-000002.*is damaged .*other steps are not affected"):
        read_rollouts(run.path, 2)
    assert read_rollouts(run.path, 0)


def test_the_same_rollouts_are_the_same_bytes(create):
    with create() as run:
        run.write_rollouts(0, [{"a": math.nan}])
        first = (run.path / "rollouts" / "step-000000.jsonl.gz").read_bytes()
        run.write_rollouts(0, [{"a": math.nan}])
        assert (run.path / "rollouts" / "step-000000.jsonl.gz").read_bytes() == first
    assert gzip.decompress(first) == b'{"a": null}\n'


def test_alarms_are_acknowledged(create):
    with create() as run:
        fill(run, range(2))
        acknowledge(run.path, "entropy-1")
        assert [a["acknowledged"] for a in read_alarms(run.path)] == [False, True]
        acknowledge(run.path, "entropy-1", False)
        assert [a["acknowledged"] for a in read_alarms(run.path)] == [False, False]
        with pytest.raises(RunError, match="no alarm 'entropy-9'; did you mean 'entropy-"):
            acknowledge(run.path, "entropy-9")


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_torn_last_line_is_cut_off_and_said(create, said):
    with create() as run:
        fill(run, range(3))
    for name in ("metrics.jsonl", "alarms.jsonl"):
        with (run.path / name).open("ab") as file:
            file.write(b'{"step": 3, "rew')
    assert [r["step"] for r in read_metrics(run.path)] == [0, 1, 2]  # a reader changes nothing
    assert (run.path / "metrics.jsonl").read_bytes().endswith(b'"rew')
    before = {k: v for k, v in files_of(run.path).items() if k != "run.lock"}
    with RunLog.open(run.path, say=said.append) as again:
        assert {k: v for k, v in files_of(run.path).items() if k != "run.lock"} == before and said == []
        again.truncate_after(3)
        assert [line.partition(": ")[2] for line in said] == [
            "the last line (16 bytes) was not written whole and is cut off"
        ] * 2
        again.append(StepRecord(3, {"reward": 0.3}))
    assert [r["step"] for r in read_metrics(run.path)] == [0, 1, 2, 3]
    assert [a["step"] for a in read_alarms(run.path)] == [0, 1, 2]


def test_only_the_line_break_is_missing(create, said):
    with create() as run:
        fill(run, range(2))
    file = run.path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with RunLog.open(run.path, say=said.append) as again:
        again.truncate_after(2)
    assert file.read_bytes() == whole and said == []


def test_what_came_after_the_checkpoint_is_forgotten(create, said):
    with create() as run:
        fill(run, range(5))
        for step in (0, 3, 5):
            run.evaluation({"step": step, "em": 0.5})
            run.write_eval_rollouts(step, [])
        acknowledge(run.path, "entropy-1")
        before = (run.path / "metrics.jsonl").read_bytes()
        run.truncate_after(3)
    assert said == [f"{run.path}: 2 steps after the checkpoint of step 3 will be made again"]
    assert before.startswith((run.path / "metrics.jsonl").read_bytes())  # the kept rows are as they were, byte for byte
    assert [r["step"] for r in read_metrics(run.path)] == [0, 1, 2] == rollout_steps(run.path)
    assert [r["step"] for r in read_evals(run.path)] == [0, 3] == rollout_steps(run.path, "eval")
    assert [(a["step"], a["acknowledged"]) for a in read_alarms(run.path)] == [(0, False), (1, True), (2, False)]


def test_a_resume_that_fails_before_it_begins_changes_nothing(create, said):
    run = fill(create(), range(3))
    run.close()  # killed: the status still says running
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "rew')
    (run.path / "checkpoints" / ".step-000004.tmp").mkdir(parents=True)
    before = files_of(run.path)
    with pytest.raises(ValueError, match="no such model"), RunLog.open(run.path, say=said.append):
        raise ValueError("no such model")
    assert files_of(run.path) == before and said == []
    with pytest.raises(ValueError, match="later"), RunLog.open(run.path, say=said.append) as again:
        again.truncate_after(2)
        raise ValueError("later")
    assert read_info(run.path).status == "failed" and len(read_metrics(run.path)) == 2
    assert not (run.path / "checkpoints" / ".step-000004.tmp").exists()


def test_status_json_has_the_step_that_was_made_last(create):
    with pytest.raises(ValueError), create() as run:
        for n in range(3):
            fill(run, [n])
            assert run.status()["step"] == n + 1 and run.status()["steps"] == 2
        raise ValueError
    assert (run.status()["status"], run.status()["step"]) == ("failed", 3)
    with RunLog.open(run.path) as again:
        again.truncate_after(1)
        again.set_status("running")
        assert again.status()["step"] == 1


def test_the_files_that_a_config_names_are_found_from_any_folder(create, tmp_path, monkeypatch):
    (tmp_path / "q.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with create(data={"train": "q.jsonl"}, world=None, model={"path": "owner/model"}) as run:
        stored = load_config(run.path).config
    assert stored.data.train == str(tmp_path / "q.jsonl") and stored.model.path == "owner/model"
    assert json.loads((run.path / "meta.json").read_text())["config_hash"] == config_hash(stored)


def test_a_config_that_cannot_be_written_leaves_no_directory(create, tmp_path):
    with pytest.raises(Exception, match="cannot represent an object"):
        create("odd", env={"kwargs": {"retriever": object()}})
    assert not (tmp_path / "odd").exists()


def test_the_command_that_goes_on_with_a_run_can_be_copied(tmp_path):
    run = tmp_path / "my runs" / "it's"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    words = shlex.split(how_to_go_on(run))
    assert words == ["agentrl", "resume", str(run)] and how_to_go_on("runs/a b").startswith(
        "agentrl train 'runs/a b/con"
    )


def test_a_run_that_is_moved_names_its_new_place(create, tmp_path):
    with create() as run:
        (run.path / "checkpoints" / "step-000001").mkdir(parents=True)
        run.set_status("stopped", message="interrupted")
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run.path.rename(moved)
    assert how_to_go_on(moved) == f"agentrl resume {moved}"
    for file in ("status.json", "meta.json"):  # no file keeps the command with the old place
        assert str(run.path) not in (moved / file).read_text()


@pytest.mark.parametrize(("value", "better"), [(0.3, False), (0.4, False), (0.5, True)])
def test_what_beats_the_best_checkpoint(create, value, better):
    with create() as run:
        assert beats_best(run.path, "em", 0.0)  # there is none yet
        run.evaluation({"step": 2, "em": 0.4})
        run.evaluation({"step": 3, "em": 0.1})
        save_checkpoint(run.path, 2, lambda folder: None, {}, keep=1, best=True)
        assert beats_best(run.path, "em", value) is better and beats_best(run.path, "other", 0.0)


def test_two_writers_are_refused(create):
    with create() as run, pytest.raises(RunError, match=f"{run.path} is in use by process {os.getpid()}"):
        RunLog.open(run.path)


# ------------------------------------------------------------------------------------------------------------- reading


def test_runs_are_listed_newest_first_whatever_is_broken(create, tmp_path):
    for name, step in (("old", 1), ("new", 4)):
        with create(name) as run:
            fill(run, range(step))
            run.set_status("finished", step=step)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "status.json").write_text("{torn")
    (tmp_path / "other").mkdir()
    runs = {r.name: r for r in list_runs(tmp_path)}
    assert [r.name for r in list_runs(tmp_path)] == ["new", "old", "broken"]
    assert (runs["new"].step, runs["new"].metrics["reward"]) == (4, 0.3)
    assert (runs["broken"].status, runs["broken"].step) == ("unknown", 0)
    assert list_runs(tmp_path / "nowhere") == []


def test_finding_a_run(create, tmp_path):
    create("good-run").close()
    assert find_run(tmp_path / "good-run") == tmp_path / "good-run"
    with pytest.raises(RunError, match="does not exist; did you mean 'good-run'"):
        find_run(tmp_path / "god-run")
    with pytest.raises(RunError, match=r"is not a run directory: it has no config.yaml"):
        find_run(tmp_path)
