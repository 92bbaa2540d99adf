"""TensorBoard and Weights & Biases beside the run directory, and what is said where they are missing."""

import math
import sys
import types

import pytest

from agentrl.errors import DISTRIBUTION, ConfigError
from agentrl.runs.read import read_metrics
from agentrl.train import trackers as writers
from agentrl.train.start import resume_run
from agentrl.train.trackers import make_writers
from agentrl.types import StepRecord
from tests.small import small_config, train_until


def test_none_by_default(tmp_path):
    assert make_writers(small_config(tmp_path), tmp_path) == ()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # what import does with a package that is not there
    wanted = rf"log.{package} is true .*pip install '{DISTRIBUTION}\[{package}\]'.*=false"
    with pytest.raises(ConfigError, match=wanted):
        make_writers(small_config(tmp_path, log={package: True}), tmp_path)


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path, warm_model):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(tmp_path, warm_model, train={"steps": 3}, log={"tensorboard": True})
    path = train_until(config, steps=2)
    resume_run(path, quiet=True)
    events = EventAccumulator(str(path / "events")).Reload()
    rows = read_metrics(path)
    points = events.Scalars("reward")
    assert [p.step for p in points] == [r["step"] for r in rows] == [0, 1, 2]
    assert [p.value for p in points] == pytest.approx([r["reward"] for r in rows])
    assert {"entropy", "grad_norm", "mismatch_max", "t_step_s"} <= set(events.Tags()["scalars"])


class FakeRun:
    """Stands for a W&B run, which needs a server."""

    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_wandb_gets_the_config_and_the_steps(tmp_path, monkeypatch):
    made = []
    fake = types.SimpleNamespace(init=lambda **options: made.append(FakeRun(**options)) or made[-1])
    monkeypatch.setattr(writers, "_need", lambda package: fake)
    config = small_config(tmp_path, log={"wandb": True, "wandb_project": "p"}, algorithm={"nthr": {"beta": -math.inf}})
    [writer] = make_writers(config, tmp_path / "run7")
    writer.write(StepRecord(4, {"reward": 0.5}))
    writer.close()
    [run] = made
    assert run.options["project"] == "p" and run.options["name"] == "run7" and run.options["config"]["seed"] == 3
    assert run.logged == [(4, {"reward": 0.5})] and run.finished
