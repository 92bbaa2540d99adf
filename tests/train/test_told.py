"""What somebody hears of a run that trains: alarms, what the guard did, that it failed; each once, over resumes."""

import pytest

from agentrl.monitors import Alarm, Monitor
from agentrl.train.start import resume_run, train_run
from agentrl.train.trainer import Trainer
from tests.receiver import receiver as receiver
from tests.small import small_config

LOG = {"log": {"checkpoint_every": 1, "keep_checkpoints": 20}}


@pytest.fixture
def scripted(monkeypatch, receiver):
    """`scripted({3: "warn"})`: the runs of the test hear these alarms and post them."""
    monkeypatch.setenv("AGENTRL_WEBHOOK", receiver.url)

    def use(script):
        class Scripted(Monitor):
            def observe(self, record):
                level = script.get(record.step)
                found = Alarm(f"collapse-{record.step}", record.step, "collapse", level or "info", "as written")
                for sink in self.sinks if level else ():
                    sink(found)
                return [found] if level else []

        monkeypatch.setattr("agentrl.train.start.Monitor", Scripted)

    return use


def heard(receiver):
    return [(b["rule"], b["step"]) for b in receiver.got]


def test_what_the_guard_did_is_posted(tmp_path, warm_model, scripted, receiver):
    scripted({0: "warn", 2: "critical"})
    guard = {"guard": {"enabled": True, "on_critical": "stop"}}
    run = train_run(small_config(tmp_path, warm_model, train={"steps": 5}, **guard, **LOG), quiet=True).run_dir
    assert heard(receiver) == [("collapse", 0), ("guard_protect", 0), ("collapse", 2), ("guard_stop", 2)]
    last = receiver.got[-1]
    assert last["run"] == run.name and last["level"] == "critical" and "stop; LLDS weight" in last["text"]


def test_a_run_that_fails_is_told_and_a_resume_repeats_nothing(tmp_path, warm_model, scripted, receiver, monkeypatch):
    scripted({0: "warn", 1: "warn"})
    original, fail = Trainer.step, [True]

    def step(self):
        if self.step_number == 2 and fail[0]:
            raise RuntimeError("the disk is on fire")
        return original(self)

    monkeypatch.setattr(Trainer, "step", step)
    config = small_config(tmp_path, warm_model, train={"steps": 3}, log={"checkpoint_every": 1, "name": "r"})
    with pytest.raises(RuntimeError):
        train_run(config, quiet=True)
    assert heard(receiver) == [("collapse", 0), ("collapse", 1), ("run_failed", 2)]
    assert "RuntimeError: the disk is on fire" in receiver.got[-1]["message"]
    assert "agentrl resume" in receiver.got[-1]["remedy"]
    with pytest.raises(RuntimeError):  # a second failure is another one, at the same step
        resume_run(tmp_path / "r", quiet=True)
    assert heard(receiver)[3:] == [("run_failed", 2)]
    fail[0] = False
    resume_run(tmp_path / "r", checkpoint=1, quiet=True)  # step 1 is made again
    assert heard(receiver)[4:] == []
