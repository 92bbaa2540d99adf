"""TensorBoard and Weights & Biases beside the run directory, and what is said where they are missing."""

import json
import math
import struct
import sys
import types
from unittest.mock import patch

import pytest

from agentrl.errors import DISTRIBUTION, ConfigError
from agentrl.runs.read import read_evals, read_metrics
from agentrl.train import start
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


def test_a_resume_from_an_earlier_step_writes_no_step_twice_and_keeps_the_held_out_figures(tmp_path, warm_model):
    """Two resumes from step 1 of a run that had gone on: TensorBoard showed steps 1 and 2 twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small_config(
        tmp_path, warm_model, train={"steps": 3}, log={"tensorboard": True, "checkpoint_every": 1},
        eval={"questions": 4, "every": 1},
    )  # fmt: skip
    path = train_until(config, steps=2)
    resume_run(path, checkpoint=1, quiet=True)
    events = EventAccumulator(str(path / "events")).Reload()
    assert [p.step for p in events.Scalars("reward")] == [0, 1, 2]
    told, rows = events.Scalars("held_out/em"), read_evals(path)
    assert [p.step for p in told] == [r["step"] for r in rows] == [0, 1, 2, 3]
    assert [p.value for p in told] == pytest.approx([r["em"] for r in rows])
    assert "held_out/reward" in events.Tags()["scalars"] and "held_out/step" not in events.Tags()["scalars"]


def test_wandb_goes_on_with_the_run_of_the_directory_and_gets_held_out_figures(tmp_path, monkeypatch):
    made = []
    fake = types.SimpleNamespace(init=lambda **options: made.append(FakeRun(**options)) or made[-1])
    monkeypatch.setattr(writers, "_need", lambda package: fake)
    config = small_config(tmp_path, log={"wandb": True})
    for folder in ("one", "one", "two"):
        [writer] = make_writers(config, tmp_path / folder)
    first, again, other = (run.options["id"] for run in made)
    assert first == again != other and {run.options["resume"] for run in made} == {"allow"}
    assert (tmp_path / "one" / "wandb_id").read_text().strip() == first
    writer.evaluation({"step": 3, "split": "test", "n": 4, "failed": 0, "em": 0.5, "seconds": 1.0})
    assert made[-1].logged == [(3, {"held_out/n": 4.0, "held_out/failed": 0.0, "held_out/em": 0.5})]


def wandb_records(file):
    """The records of an offline run's file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # the rest of a block is filled up
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
def test_real_wandb_has_every_step_and_held_out_figure_once_after_a_resume(tmp_path, warm_model, monkeypatch):
    """Offline, with the real package; its files are read back as `wandb sync` would."""
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = small_config(
        tmp_path, warm_model, train={"steps": 3}, log={"wandb": True, "checkpoint_every": 1},
        eval={"questions": 4, "every": 1},
    )  # fmt: skip
    path = train_until(config, steps=2)
    resume_run(path, checkpoint=1, quiet=True)  # step 1, which is there, is made again
    ids, points = set(), {}
    files = sorted(path.glob("wandb/offline-run-*/run-*.wandb"))
    for record in (r for file in files for r in wandb_records(file)):
        if record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            points.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    assert len(files) == 2 and ids == {(path / "wandb_id").read_text().strip()}
    rows = read_metrics(path)
    assert [s for s, _ in points["reward"]] == [0, 1, 2]
    assert [v for _, v in points["reward"]] == pytest.approx([r["reward"] for r in rows])
    assert {"entropy", "grad_norm", "t_step_s"} <= points.keys()
    assert points["held_out/em"] == [(r["step"], pytest.approx(r["em"])) for r in read_evals(path)]
    assert [s for s, _ in points["held_out/em"]] == [0, 1, 2, 3]


def test_the_trainer_hands_evaluations_to_the_trackers_that_take_them(tmp_path, warm_model):
    """A tracker of somebody's own may have `write` and `close` alone."""
    told = []
    full = types.SimpleNamespace(
        write=lambda r: None, close=lambda: None, evaluation=lambda row: told.append(row["em"])
    )
    bare = types.SimpleNamespace(write=lambda r: None, close=lambda: None)
    config = small_config(tmp_path, warm_model, train={"steps": 1}, eval={"questions": 2})
    path = train_until(config, meddle=lambda trainer: setattr(trainer, "writers", (full, bare)))
    assert told == [row["em"] for row in read_evals(path)] and len(told) == 2


@pytest.mark.parametrize("method", ["write", "evaluation", "close", "resume"])
def test_a_tracker_that_raises_ends_no_run_and_the_others_are_told(tmp_path, warm_model, capsys, method):
    """A tracker's server that cannot be reached lost the step; it is said once, whatever number of steps follows."""
    told = []

    def fail(*arguments):
        raise ConnectionError("no route to the tracker")

    def keep(name):
        return lambda *arguments: told.append(name)

    names = ("write", "evaluation", "close", "resume")
    broken = types.SimpleNamespace(**{n: keep("x") for n in names} | {method: fail})
    whole = types.SimpleNamespace(**{n: keep(n) for n in names})
    config = small_config(tmp_path, warm_model, train={"steps": 3}, eval={"questions": 2, "every": 1})
    meddle = lambda trainer: setattr(trainer, "writers", (broken, whole))  # noqa: E731
    path = train_until(config, steps=2, meddle=meddle)
    with patch.object(start, "make_writers", lambda config, path: (broken, whole)):
        resume_run(path)
    assert [r["step"] for r in read_metrics(path)] == [0, 1, 2]
    assert [told.count(n) for n in names] == [3, 5, 2, 1]  # the evaluation after step 2 is told again by the resume
    said = capsys.readouterr().err
    assert said.count(f"failed in {method} and lacks that (ConnectionError: no route to the tracker)") == 1
