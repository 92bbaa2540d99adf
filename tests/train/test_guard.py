"""What the guard decides is done, written down, shown, and still true after a kill and a resume."""

import copy
import json
import statistics
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from agentrl.cli import main
from agentrl.config.files import load_config
from agentrl.monitors import Alarm, Monitor
from agentrl.runs.read import read_alarms, read_guard, read_info, read_metrics
from agentrl.train.start import resume_run, train_run
from tests.small import small_config, train_until, without_times

GUARD = {"guard": {"enabled": True}, "log": {"checkpoint_every": 1, "keep_checkpoints": 20}}


class Scripted(Monitor):
    """A monitor whose alarms are written in advance: step -> level. The decay began at step 2."""

    script: ClassVar = {}

    def observe(self, record):
        super().observe(record)
        level = self.script.get(record.step)
        return [Alarm(f"collapse-{record.step}", record.step, "collapse", level, "as written")] if level else []

    def decay_onset(self):
        return 2

    def active(self):
        return {}


@pytest.fixture
def scripted(monkeypatch):
    """`scripted({3: "warn"})`: every run of the test, resumed ones too, hears these alarms."""

    def use(script):
        monkeypatch.setattr("agentrl.train.start.Monitor", type("Written", (Scripted,), {"script": script}))

    return use


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_a_warning_changes_the_next_updates_and_quiet_takes_it_back(tmp_path, warm_model, scripted):
    scripted({1: "warn"})
    seen = {}

    def watch_updates(trainer):
        update = trainer.engine.update

        def spy(*args, loss, **kwargs):
            seen.setdefault(trainer.step_number, (loss.llds.enabled, loss.llds.weight, trainer.engine.lr_scale))
            return update(*args, loss=loss, **kwargs)

        trainer.engine.update = spy

    guard = GUARD["guard"] | {"release_after": 2, "llds_weight": 0.3, "lr_factor": 0.25}
    config = small_config(tmp_path, warm_model, **GUARD | {"guard": guard}, train={"steps": 6})
    path = train_until(config, meddle=watch_updates)
    assert [seen[n][0] for n in range(6)] == [False, False, True, True, False, False]
    assert seen[2][1:] == (0.3, 0.25) and seen[4][2] == 1.0
    lr = [row["lr"] for row in read_metrics(path)]
    assert lr[2] == lr[3] == pytest.approx(lr[0] / 4) and lr[4] == lr[5] == lr[0]
    rows = [{k: row[k] for k in ("step", "kind", "llds_weight", "lr_scale")} for row in read_guard(path)]
    assert rows == [
        {"step": 1, "kind": "protect", "llds_weight": 0.3, "lr_scale": 0.25},
        {"step": 3, "kind": "release", "llds_weight": 0.0, "lr_scale": 1.0},
    ]


@pytest.mark.slow
def test_the_learning_rate_stays_below_the_one_that_was_warned_of_also_after_a_resume(tmp_path, warm_model, scripted):
    scripted({5: "warn"})
    rising = GUARD | {"optim": {"lr": 1e-3, "warmup_steps": 100}, "train": {"steps": 10}}
    whole = read_metrics(train_until(small_config(tmp_path / "whole", warm_model, **rising)))
    lr = [row["lr"] for row in whole]
    unlimited = lr[5] * 19.5 / 11.5 / 2  # of step 9: the schedule, halved
    assert lr[0] < lr[5] and max(lr[6:]) < 1.2 * lr[5] / 2 < 0.8 * unlimited  # one step of the ramp is allowed
    stopped = train_until(small_config(tmp_path / "parts", warm_model, **rising), steps=8)
    resume_run(stopped, quiet=True)
    assert [row["lr"] for row in read_metrics(stopped)] == lr


def test_a_roll_back_takes_weights_and_optimiser_from_before_the_decay_and_keeps_what_it_leaves(
    tmp_path, warm_model, scripted, capsys
):
    scripted({5: "critical"})
    kept = {}

    def remember(trainer):
        act = trainer.guard.after

        def spy(record, alarms):
            if record.step == 5:
                kept["before"] = copy.deepcopy(trainer.engine.model.state_dict())
            stop = act(record, alarms)
            if record.step == 5:
                kept["after"] = copy.deepcopy(trainer.engine.model.state_dict())
                kept["updates"], kept["seen"] = trainer.engine.updates, trainer.monitor.seen
            return stop

        trainer.guard.after = spy

    path = train_until(small_config(tmp_path, warm_model, **GUARD, train={"steps": 8}), meddle=remember)
    [row] = read_guard(path)
    assert (row["kind"], row["back_to"], row["weights_of"]) == ("rollback", 2, 2)
    assert same(weights(path / "checkpoints" / "step-000002"), kept["after"])
    assert kept["updates"] == 4 and kept["seen"] == 0  # two updates per step; the monitors warm up again
    assert not same(kept["before"], kept["after"])
    assert same(weights(path / row["left_behind"]), kept["before"])  # the way back
    assert [r["step"] for r in read_metrics(path)] == list(range(8))  # steps and questions go on
    capsys.readouterr()
    assert main(["alarms", str(path)]) == 0
    out = capsys.readouterr().out
    assert "guard" in out and "rollback" in out and "weights after 2 steps" in out and row["left_behind"] in out


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_roll_back_of_a_falling_schedule_stays_below_the_rate_that_was_warned_of(
    tmp_path, warm_model, scripted, schedule
):
    scripted({8: "critical"})
    changes = GUARD | {"train": {"steps": 10}, "optim": {"schedule": schedule}}
    path = train_until(small_config(tmp_path, warm_model, **changes))
    [row] = read_guard(path)
    lr = [r["lr"] for r in read_metrics(path)]
    assert row["weights_of"] == 2 and row["lr_ceiling"] == pytest.approx(lr[8] / 2)
    assert lr[2] / 2 > 2 * row["lr_ceiling"]  # half of what the schedule says there is too much
    assert max(lr[9:]) <= row["lr_ceiling"] * (1 + 1e-9)


@pytest.mark.slow
def test_a_kill_after_a_roll_back_is_resumed_from_it(tmp_path, warm_model, scripted):
    scripted({3: "critical"})
    changes = GUARD | {"train": {"steps": 6}, "log": {"checkpoint_every": 2, "keep_checkpoints": 20}}
    whole = train_until(small_config(tmp_path / "whole", warm_model, **changes))
    config = small_config(tmp_path / "parts", warm_model, **changes)

    def kill(trainer):
        step = trainer.step

        def spy():
            if trainer.step_number == 5:
                raise KeyboardInterrupt  # nothing of step 4 was saved
            return step()

        trainer.step = spy

    with pytest.raises(KeyboardInterrupt):
        train_until(config, meddle=kill)
    path = tmp_path / "parts" / "a"
    assert resume_run(path, quiet=True).result.status == "finished"
    assert without_times(read_metrics(path)) == without_times(read_metrics(whole))
    assert without_times(read_guard(path)) == without_times(read_guard(whole))
    ends = [weights(p / "checkpoints" / "step-000006") for p in (path, whole)]
    assert same(*ends)
    state = json.loads((path / "checkpoints" / "step-000006" / "state.json").read_text())
    assert state["guard"]["rollbacks"] == 1 and state["guard"]["lr_scale"] == 0.5


def test_stop_ends_the_run_says_why_and_can_be_resumed(tmp_path, warm_model, scripted, capsys):
    scripted({2: "critical"})
    guard = GUARD["guard"] | {"on_critical": "stop"}
    done = train_run(small_config(tmp_path, warm_model, **GUARD | {"guard": guard}, train={"steps": 5}))
    assert (done.result.status, done.result.steps) == ("stopped", 3)
    [row] = read_guard(done.run_dir)
    assert row["kind"] == "stop" and row["reason"] == "as written"
    info = read_info(done.run_dir)
    assert info.status == "stopped" and "guard" in info.message and "as written" in info.message
    assert "guard, step 2: stop" in capsys.readouterr().err
    assert resume_run(done.run_dir, quiet=True).result.status == "finished"  # it is for its owner to say
    assert len(read_metrics(done.run_dir)) == 5


# ------------------------------------------------------------------------------------------------------ a real collapse


@pytest.mark.slow
def test_a_collapse_is_rolled_back_to_before_the_decay_and_the_run_ends_at_a_high_reward(tmp_path):
    """The shipped run whose learning rate keeps rising, with warnings ignored until it is critical."""
    changes = ["seed=1", "guard.on_warn=nothing", "train.steps=115", "eval.questions=0", "model.threads=1"]
    changes += ["log.name=a", f"log.runs_dir={tmp_path}"]
    path = train_run(load_config("collapse_guarded", changes).config, quiet=True).run_dir
    rows, first = read_metrics(path), read_guard(path)[0]
    raised = [(a["rule"], a["level"], a["step"]) for a in read_alarms(path)]
    warn = next(step for rule, level, step in raised if (rule, level) == ("collapse", "warn"))
    assert first["kind"] == "rollback" and ("collapse", "critical", first["step"]) in raised
    assert warn < first["step"]  # heard, and left alone

    def mean(steps):
        rewards = [rows[n]["reward"] for n in steps]
        return sum(rewards) / len(rewards)

    # The best level of the likelihood, by another formula than the monitor's; log π is negative, so least is best.
    before = [row["logprob_correct"] for row in rows[: first["step"] + 1]]
    levels = {n: statistics.median(before[max(0, n - 19) : n + 1]) for n in range(9, len(before))}
    assert first["back_to"] == max(levels, key=lambda n: (levels[n], n))
    assert first["back_to"] - 5 < first["weights_of"] <= first["back_to"] < first["step"]
    peak = max(mean(range(n - 4, n + 1)) for n in range(4, first["step"]))
    assert mean(range(first["step"] - 4, first["step"] + 1)) < 0.65 * peak
    assert mean(range(len(rows) - 10, len(rows))) > 0.9 * peak
    assert (path / first["left_behind"] / "optimizer.safetensors").is_file()
