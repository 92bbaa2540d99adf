"""Whole runs: killed and resumed, interrupted, on a full disk, with damaged files; and never overwritten."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from agentrl.config.files import to_yaml
from agentrl.errors import DataError, RunError
from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.log import RunLog
from agentrl.runs.read import list_runs, read_alarms, read_evals, read_info, read_metrics, rollout_steps
from agentrl.train.start import resume_run, train_run
from tests.monitors.plugged import Kept
from tests.small import files_of, small_config, train_until, without_times

NTHR = {"algorithm": {"nthr": {"enabled": True}}}
LLDS = {"algorithm": {"nthr": {"enabled": True}, "loss": {"llds": {"enabled": True}}}}
LORA = {"algorithm": {"nthr": {"enabled": True}}, "model": {"lora": {"rank": 4}}, "optim": {"lr": 1e-2}}


def weights_of(run_dir):
    """Content of the newest checkpoint's weights and optimiser."""
    files = files_of(list_checkpoints(run_dir)[-1][1])
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def same_run(first, second):
    """Equal metrics, evaluations, stored rollouts and final weights, except for clocks."""
    assert without_times(read_metrics(first)) == without_times(read_metrics(second))
    assert without_times(read_evals(first)) == without_times(read_evals(second))
    assert rollout_steps(first) == rollout_steps(second)
    assert weights_of(first) == weights_of(second) and weights_of(first)


@contextlib.contextmanager
def agentrl(*arguments):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "agentrl", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process, seconds=120):
    """Poll until `condition()`; fails with the process's output where it ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def config_file(tmp_path, config):
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(config))
    return path


# --------------------------------------------------------------------------------------------------- kill and interrupt


@pytest.mark.slow
@pytest.mark.parametrize("changes", [NTHR, LLDS, LORA], ids=["nthr", "llds", "lora"])
def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path, warm_model, changes):
    changes = changes | {"train": {"steps": 24}, "eval": {"questions": 6, "every": 8}}
    whole = train_run(small_config(tmp_path / "whole", warm_model, **changes, log={"checkpoint_every": 7}), quiet=True)
    config = small_config(tmp_path / "parts", warm_model, **changes, log={"checkpoint_every": 7})
    run = tmp_path / "parts" / "a"
    with agentrl("train", config_file(tmp_path, config)) as process:
        wait_for(lambda: len(read_metrics(run)) >= 10, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_info(run).status == "stopped" and read_info(run).step >= 10
    with agentrl("resume", run, "--json") as process:
        wait_for(lambda: (run / "checkpoints" / "step-000014").exists(), process)
        process.send_signal(signal.SIGKILL)  # and once more
        process.wait()
    with agentrl("resume", run, "--json") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["status"] == "finished"
    same_run(whole.run_dir, run)


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, warm_model):
    config = small_config(tmp_path, warm_model, train={"steps": 5000})
    run = tmp_path / "a"
    with agentrl("train", config_file(tmp_path, config)) as process:
        wait_for(lambda: len(read_metrics(run)) >= 2, process)
        with pytest.raises(RunError, match=f"{run} is in use by process {process.pid}"):
            resume_run(run, quiet=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    steps = len(read_metrics(run))
    assert process.returncode == 130 and "Traceback" not in err
    assert f"stopped after step {steps} and saved; go on with: agentrl resume {run}" in err
    assert [step for step, _ in list_checkpoints(run)] == [steps]
    info = read_info(run)
    assert (info.status, info.step) == ("stopped", steps)
    assert not [*run.glob(".*"), *run.glob("checkpoints/.*")]  # nothing half-written

    # It goes on from there; the config says how long, and an edited run directory is respected.
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 5000", f"steps: {steps + 1}"))
    assert resume_run(run, quiet=True).result.steps == steps + 1 == len(read_metrics(run))


@pytest.mark.slow
def test_a_second_ctrl_c_interrupts_at_once(tmp_path, warm_model):
    config = small_config(
        tmp_path, warm_model, train={"steps": 3}, eval={"questions": 1},
        rollout={"prompts_per_step": 4000, "concurrency": 8},
    )  # fmt: skip
    run = tmp_path / "a"
    with agentrl("train", config_file(tmp_path, config)) as process:
        wait_for(lambda: read_evals(run), process)  # now comes the first step, which would take a minute
        process.send_signal(signal.SIGINT)
        for line in process.stderr:
            if line.startswith("finishing this step, then saving; Ctrl-C again stops at once"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err, err
    assert process.returncode == 130 and err.endswith("interrupted\n")
    info = read_info(run)
    assert (info.status, info.message, info.step) == ("stopped", "interrupted", 0)


def test_ctrl_c_before_the_first_step_evaluates_once(tmp_path, warm_model):
    """The evaluation before the first step was made; a resume does not make it again."""
    config = small_config(tmp_path, warm_model, eval={"questions": 4})
    path = train_until(config, meddle=lambda trainer: setattr(trainer, "stop_requested", True))
    assert read_info(path).status == "stopped" and [e["step"] for e in read_evals(path)] == [0]
    resume_run(path, quiet=True)
    assert [e["step"] for e in read_evals(path)] == [0, 2]
    whole = train_run(small_config(tmp_path / "whole", warm_model, eval={"questions": 4}), quiet=True)
    same_run(whole.run_dir, path)


# --------------------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def disk(tmp_path):
    """`disk(kib)`: a file system of that size mounted on a folder; again with another size, and its size changes."""
    mounted = []

    def mount(kib):
        path = tmp_path / "disk"
        path.mkdir(exist_ok=True)
        options = f"size={kib}k" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(
                "cannot mount a file system here; tests/runs/test_files.py and test_checkpoint.py simulate a full disk"
            )
        mounted.append(path)
        return path

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(mounted[0])], check=True)  # the run's index is still open


@pytest.mark.slow
@pytest.mark.parametrize("full_at", ["checkpoint", "rows", "dump"])
def test_a_full_disk_loses_nothing(tmp_path, warm_model, disk, full_at):
    changes = {"train": {"steps": 4}, "log": {"checkpoint_every": 1, "keep_checkpoints": 9}}
    whole = train_run(small_config(tmp_path / "whole", warm_model, **changes), quiet=True)
    used = sum(f.stat().st_size for f in whole.run_dir.rglob("*") if f.is_file()) >> 10
    path = disk(40 * used)
    config = small_config(path, warm_model, **changes)

    def fill(trainer):
        step, save = trainer.step, trainer.save

        def leave(kib):
            stat = os.statvfs(path)
            free = stat.f_bavail * stat.f_frsize - kib * 1024
            (path / "ballast").write_bytes(b"\0" * free)

        def filling_step():
            if trainer.step_number == 2 and full_at != "checkpoint":
                leave(0)
            if trainer.step_number == 2 and full_at == "dump":
                parameter = next(trainer.engine.model.parameters())
                parameter.register_hook(lambda g: g * float("nan"))
            return step()

        def filling_save():
            if trainer.step_number == 3 and full_at == "checkpoint" and not (path / "ballast").exists():
                leave(100)
            return save()

        trainer.step, trainer.save = filling_step, filling_save

    with pytest.raises(RunError, match=r"the disk is full \(0 MiB free\).*intact: free some space"):
        train_until(config, meddle=fill)
    run = path / "a"
    done = 3 if full_at == "checkpoint" else 2
    rows = [r["step"] for r in read_metrics(run)]  # a row may still fit into the file's last block; a resume cuts it
    assert rows in (list(range(done)), list(range(done + (full_at == "rows"))))
    assert [step for step, _ in list_checkpoints(run)] == [1, 2]
    assert read_info(run).status in ("failed", "stopped")
    (path / "ballast").unlink()
    assert resume_run(run, quiet=True).result.status == "finished"
    same_run(whole.run_dir, run)


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.fixture
def stopped(tmp_path, warm_model):
    """A run of 4 steps that was stopped after 3, with a checkpoint of each step."""
    config = small_config(tmp_path, warm_model, train={"steps": 4}, log={"checkpoint_every": 1})
    return train_until(config, steps=3)


@pytest.fixture
def whole(tmp_path, warm_model):
    config = small_config(tmp_path / "whole", warm_model, train={"steps": 4}, log={"checkpoint_every": 1})
    return train_run(config, quiet=True).run_dir


def test_a_flipped_byte_is_named_and_the_previous_checkpoint_used(stopped, whole, capsys):
    file = stopped / "checkpoints" / "step-000003" / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 0xFF
    file.write_bytes(data)
    resume_run(stopped)
    err = capsys.readouterr().err
    assert "checkpoint step-000003 is damaged and will not be used" in err and f"{file} was changed" in err
    assert "resuming" in err and "at step 2 of 4" in err and "1 steps after the checkpoint" in err
    same_run(whole, stopped)


def test_when_every_checkpoint_is_damaged_nothing_is_touched(stopped):
    for _, path in list_checkpoints(stopped):
        (path / "optimizer.safetensors").write_bytes(b"x")
    before = files_of(stopped)
    with pytest.raises(RunError, match=r"no checkpoint is whole .*Restore one from a copy, or train again"):
        resume_run(stopped, quiet=True)
    after = files_of(stopped)
    del before["status.json"], after["status.json"], before["run.lock"], after["run.lock"]
    assert after == before and len(read_metrics(stopped)) == 3


def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(stopped, whole, capsys):
    file = stopped / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the kill came in the middle of the last row
    (stopped / "checkpoints" / "step-000003" / "manifest.json").unlink()  # and of the last checkpoint
    resume_run(stopped)
    assert "metrics.jsonl: the last line" in (err := capsys.readouterr().err) and "cut off" in err
    same_run(whole, stopped)


def test_rows_lost_before_the_checkpoint_are_not_invented(stopped):
    """Only a power cut between fsyncs could do this; the run goes on and says nothing false."""
    file = stopped / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    resume_run(stopped, quiet=True)
    assert [r["step"] for r in read_metrics(stopped)] == [0, 1, 3]


def test_other_questions_than_the_run_began_with(stopped):
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(text.replace("people: 24", "people: 26"))
    with pytest.raises(DataError, match=r"saved position is in a set of \d+ questions, this one has \d+; resume with"):
        resume_run(stopped, quiet=True)


# ------------------------------------------------------------------------------------------- beginning and ending a run


def test_a_run_is_never_overwritten_without_force(stopped, warm_model):
    before = files_of(stopped)
    config = small_config(stopped.parent, warm_model, seed=9)
    with pytest.raises(RunError, match="already holds a run"):
        train_run(config, quiet=True)
    assert files_of(stopped) == before
    done = train_run(config, force=True, quiet=True)
    assert done.run_dir == stopped and len(read_metrics(stopped)) == 2
    assert json.loads((stopped / "meta.json").read_text())["seed"] == 9


def test_a_run_in_use_is_left_alone(stopped, warm_model):
    with RunLog.open(stopped):
        with pytest.raises(RunError, match="is in use by process"):
            resume_run(stopped, quiet=True)
        with pytest.raises(RunError, match="is in use by process"):
            train_run(small_config(stopped.parent, warm_model), force=True, quiet=True)
    assert len(read_metrics(stopped)) == 3


def test_what_fails_before_the_first_step_leaves_no_directory(tmp_path, warm_model, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("agentrl.train.start.build_job", broken)
    with pytest.raises(ZeroDivisionError):
        train_run(small_config(tmp_path, warm_model), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_run_until_the_new_one_begins(stopped, warm_model, monkeypatch):
    before = files_of(stopped)

    def broken(*args, **kwargs):
        assert [r.name for r in list_runs(stopped.parent)] == [stopped.name]  # what waits is hidden
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("agentrl.train.start.build_job", broken)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            train_run(small_config(stopped.parent, warm_model), force=True, quiet=True)
        assert files_of(stopped) == before
    assert [p.name for p in stopped.parent.iterdir()] == [stopped.name]


def test_ctrl_c_while_a_run_begins_leaves_what_was_there(stopped, monkeypatch):
    before = files_of(stopped)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("agentrl.train.start.warmed_up", interrupt)
    for force, name in ((True, stopped.name), (False, "new")):
        config = small_config(stopped.parent, warm_start={"demonstrations": 8}, log={"name": name})
        with pytest.raises(KeyboardInterrupt):
            train_run(config, force=force, quiet=True)
        assert [p.name for p in stopped.parent.iterdir()] == [stopped.name] and files_of(stopped) == before


def test_force_after_a_process_killed_while_it_began(stopped, warm_model):
    """What the killed process had set aside is put back where the next one cannot begin either, and goes otherwise."""
    before = files_of(stopped)
    RunLog.create(stopped.parent, stopped.name, small_config(stopped.parent), force=True)._lock.release()
    again = RunLog.create(stopped.parent, stopped.name, small_config(stopped.parent), force=True)
    again.discard()
    assert files_of(stopped) == before
    aside = stopped.with_name(f".{stopped.name}.replaced")
    shutil.copytree(stopped, aside)  # what could not be deleted is worth less than a run that went on
    with RunLog.create(stopped.parent, stopped.name, small_config(stopped.parent), force=True) as third:
        assert files_of(aside) == before
        third.discard()
    assert files_of(stopped) == before
    train_run(small_config(stopped.parent, warm_model), force=True, quiet=True)
    assert [p.name for p in stopped.parent.iterdir()] == [stopped.name]


def test_resuming_what_cannot_be_resumed(tmp_path, warm_model, whole):
    with pytest.raises(RunError, match=r"has finished its 4 steps; to train on, raise .*--set model.path="):
        resume_run(whole, quiet=True)
    config = whole / "config.yaml"
    config.write_text(config.read_text().replace("  steps: 4", "  steps: 5"))
    assert resume_run(whole, quiet=True).result.steps == 5 and len(read_metrics(whole)) == 5
    RunLog.create(tmp_path, "empty", small_config(tmp_path, warm_model)).close()
    with pytest.raises(RunError, match=r"no checkpoint to resume from; start it again: agentrl train .*--force"):
        resume_run(tmp_path / "empty", quiet=True)
    with pytest.raises(RunError, match="does not exist"):
        resume_run(tmp_path / "nowhere", quiet=True)


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished_by_a_resume(whole):
    metrics, evals = (whole / "metrics.jsonl").read_bytes(), (whole / "evals.jsonl").exists()
    status = json.loads((whole / "status.json").read_text())
    (whole / "status.json").write_text(json.dumps(status | {"status": "running"}))  # as kill -9 leaves it
    assert read_info(whole).status == "stopped"
    assert resume_run(whole, quiet=True).result.status == "finished"
    assert read_info(whole).status == "finished" and (whole / "metrics.jsonl").read_bytes() == metrics
    assert (whole / "evals.jsonl").exists() == evals
    with pytest.raises(RunError, match="has finished its 4 steps"):
        resume_run(whole, quiet=True)


def test_a_finished_run_says_how_it_went(tmp_path, warm_model, capsys):
    config = small_config(tmp_path, warm_model, eval={"questions": 4}, log={"name": None})
    done = train_run(config)
    err = capsys.readouterr().err
    assert done.run_dir.name.startswith("small-s3-") and f"run directory: {done.run_dir}" in err
    assert "training and " in err and "held-out questions" in err and "parameters on cpu" in err
    assert "held-out after 0 steps: " in err and "held-out after 2 steps: " in err and "step 2/2  reward" in err
    assert (done.result.status, done.result.steps) == ("finished", 2)
    assert [e["step"] for e in done.result.evaluations] == [0, 2]
    names = "config.yaml meta.json status.json metrics.jsonl evals.jsonl rollouts checkpoints index run.lock"
    assert {p.name for p in done.run_dir.iterdir()} == set(names.split())
    train_run(small_config(tmp_path / "b", warm_model), quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_run_of_no_steps_evaluates_and_saves_the_start(tmp_path, warm_model):
    done = train_run(small_config(tmp_path, warm_model, train={"steps": 0}, eval={"questions": 4}), quiet=True)
    assert done.result.status == "finished" and [e["step"] for e in done.result.evaluations] == [0]
    assert read_metrics(done.run_dir) == [] and [step for step, _ in list_checkpoints(done.run_dir)] == [0]


def test_a_checkpoint_is_a_model_to_start_from(stopped, warm_model, tmp_path):
    model = stopped / "checkpoints" / "step-000003" / "model"
    done = train_run(small_config(tmp_path / "next", model, train={"steps": 1}, optim={"lr": 1e-9}), quiet=True)
    first, last = (
        load_file(model / "model.safetensors"),
        load_file(done.run_dir / "checkpoints" / "step-000001" / "model" / "model.safetensors"),
    )
    assert all((first[k] - last[k]).abs().max() < 1e-6 for k in first)


def test_the_monitors_of_a_run_are_as_configured(tmp_path):
    """Thresholds, a rule of one's own and a sink, in one run that trains."""
    alarms = tmp_path / "elsewhere.jsonl"
    sinks = [f"file={alarms}", "tests.monitors.plugged:Kept"]
    Kept.made.clear()
    monitors = {"thresholds": {"clip_share": 0.07}, "rules": ["tests.monitors.plugged:Tells"]}
    run = train_run(small_config(tmp_path, monitors=monitors, log={"sinks": sinks}), quiet=True).run_dir
    [(source, _, kept)] = Kept.made
    assert source == run.name and [a.rule for a in kept if a.rule == "tells"] == ["tells"] and kept.closed
    [row] = [a for a in read_alarms(run) if a["rule"] == "tells"]
    assert (row["step"], row["message"]) == (0, "clip_share is 0.07")
    told = [json.loads(line)["rule"] for line in alarms.read_text().splitlines()]
    assert told == [a["rule"] for a in read_alarms(run)] == [a.rule for a in kept]
