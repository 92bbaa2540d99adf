"""An engine from another package, given as `module:attribute`, is asked at every place where the loop must know it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from agentrl.cli import main
from agentrl.config import RunConfig
from agentrl.config.files import load_config, to_yaml
from agentrl.engines.kind import Estimate, engine_kind
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.local.kind import LocalKind
from agentrl.errors import ConfigError, PluginError
from agentrl.runs.checkpoint import latest_checkpoint
from agentrl.runs.read import read_info, read_metrics
from agentrl.train.build import build_job
from agentrl.train.start import resume_run, train_run
from agentrl.train.trainer import Trainer
from tests.small import files_of, small_config, train_until, without_times

HERE = "tests.engines.test_kind"
CALLS: list[str] = []


class Farther(LocalEngine):
    """Wants a checkpoint before the first step."""

    needs_first_checkpoint = True


class OutsideKind(LocalKind):
    """A kind of another package. Its models come as files, and it takes no more than nine mini-batches."""

    warms_up_with = "local"

    def rules(self, config):
        if config.train.mini_batches > 9:
            yield f"train.mini_batches is {config.train.mini_batches}, and outside takes 9 at most: set it to 9"

    def problems(self, config):
        CALLS.append("problems")
        return ["the outside world does not answer: start it"] if config.seed == 13 else []

    def placement(self, config):
        return [[["placement", ""], ["outside", f"{config.train.mini_batches} machines"]]]

    def estimate(self, config, shape):
        return Estimate([["memory, about", ""], ["outside", f"{shape.layers} layers"]])

    def build(self, parts):
        CALLS.append(f"build from {Path(parts.model.path).name}, {parts.total_steps} steps")
        engine = super().build(parts)
        engine.__class__ = Farther
        return engine


OUTSIDE = OutsideKind()
NOT_ONE = 7


def outside(runs_dir, **changes) -> RunConfig:
    return small_config(runs_dir, engine=f"{HERE}:OUTSIDE", **changes)


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


@pytest.mark.slow
def test_a_whole_run_of_an_outside_engine(tmp_path, calls):
    path = train_until(outside(tmp_path / "out"))
    assert calls == ["problems", "problems", "build from initial, 4 steps"]  # before a model is made, and when built
    assert [r["step"] for r in read_metrics(path)] == [0, 1] and read_info(path).status == "finished"
    assert (path / "initial" / "model.safetensors").is_file()  # made by the engine that it warms up with
    assert load_config(path / "config.yaml").config.engine == f"{HERE}:OUTSIDE"
    own = train_until(small_config(tmp_path / "own"))
    assert not (own / "initial").exists()


@pytest.mark.slow
def test_the_first_checkpoint_is_asked_for_by_the_engine(tmp_path, monkeypatch):
    saved: list[int] = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self: saved.append(self.step_number) or save(self))
    train_until(outside(tmp_path / "out"))
    assert saved == [0, 2]
    saved.clear()
    train_until(small_config(tmp_path / "own"))
    assert saved == [2]


@pytest.mark.parametrize("steps", [0, 2])
def test_the_engine_says_how_far_ahead_it_samples(tmp_path, monkeypatch, steps):
    monkeypatch.setattr(Farther, "samples_ahead", steps)
    job = build_job(outside(tmp_path), tmp_path)
    trainer = Trainer(job, None)
    assert trainer.ahead.depth == steps
    trainer.close()


@pytest.mark.slow
def test_an_outside_engine_gives_the_same_run(tmp_path):
    a = train_until(outside(tmp_path / "out"))
    b = train_until(small_config(tmp_path / "own"))
    assert without_times(read_metrics(a)) == without_times(read_metrics(b))
    weights = [files_of(latest_checkpoint(p)[0])["model/model.safetensors"] for p in (a, b)]
    assert weights[0] == weights[1]


def test_it_resumes_from_its_checkpoint(tmp_path, calls):
    path = train_until(outside(tmp_path), steps=1)
    calls.clear()
    assert resume_run(path, quiet=True).result.steps == 2
    assert calls == ["problems", "build from model, 4 steps"]


def test_its_problems_stop_a_run_before_anything_is_made(tmp_path, calls):
    with pytest.raises(ConfigError, match="the outside world does not answer: start it"):
        train_run(outside(tmp_path, seed=13), quiet=True)
    assert calls == ["problems"] and not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="does not answer"):
        build_job(outside(tmp_path, seed=13), tmp_path)  # eval and resume come here alone


def test_its_rules_are_rules_of_the_config(tmp_path):
    with pytest.raises(ValidationError, match="outside takes 9 at most: set it to 9"):
        outside(tmp_path, train={"mini_batches": 10})
    small_config(tmp_path, train={"mini_batches": 10})  # another engine takes more
    config = outside(tmp_path)
    with pytest.raises(ValidationError, match="outside takes 9 at most"):
        config.train = config.train.model_copy(update={"mini_batches": 10})


def test_the_dry_run_prints_its_placement_and_estimate(tmp_path, capsys):
    file = tmp_path / "outside.yaml"
    file.write_text(to_yaml(outside(tmp_path / "runs")))
    assert main(["train", str(file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 machines" in said and "2 layers" in said and "time per step" not in said
    assert main(["train", str(file), "--set", "engine=local", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "machines" not in said and "time per step" in said and "gradients and AdamW" in said
    assert not (tmp_path / "runs").exists()


def test_a_context_that_the_model_does_not_have_is_refused_and_the_engine_closed(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Farther, "close", lambda self: closed.append(True))
    with pytest.raises(
        ConfigError, match=r"rollout.max_context = 300 but builtin:tiny has 256 positions; set it to 256"
    ):
        build_job(outside(tmp_path, rollout={"max_context": 300}), tmp_path)
    assert closed == [True]


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openrlfh", r"there is no engine 'openrlfh'; did you mean 'openrlhf'"),
        ("lokal", r"did you mean 'local'"),
        ("somewhere", r"there are local, openrlhf"),
        ("no.such:ENGINE", r"no\.such:ENGINE cannot be imported"),
        (f"{HERE}:OUTSIED", r"has no 'OUTSIED'; did you mean 'OUTSIDE'"),
        (f"{HERE}:NOT_ONE", r"a int: it must be an agentrl.engines.kind.EngineKind"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(tmp_path, name, said):
    with pytest.raises(ValidationError, match=said):
        small_config(tmp_path, engine=name)


def test_a_wrong_name_in_a_file_has_its_line(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("extends: search_tiny\nengine: openrlfh\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:2: engine: there is no engine 'openrlfh'; did you mean 'openrlhf'"):
        load_config(file)


def test_what_is_no_kind_is_said_to_be_none():
    with pytest.raises(PluginError, match="did you mean 'local'"):
        engine_kind("locl")
    with pytest.raises(ConfigError, match=r"a int: it must be an agentrl\.engines\.kind\.EngineKind"):
        engine_kind(f"{HERE}:NOT_ONE")
    assert engine_kind("local").warms_up_with is None and engine_kind("openrlhf").warms_up_with == "local"
