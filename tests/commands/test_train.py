"""`train` and `resume`: what they print, and the exit codes; what they do is tested with the trainer."""

import json
import shutil

import pytest

from agentrl.cli import main
from agentrl.commands.train import report
from agentrl.train.start import FinishedRun
from agentrl.train.trainer import TrainResult
from tests.small import small_config


@pytest.fixture
def config_file(tmp_path):
    from agentrl.config.files import to_yaml

    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(small_config(tmp_path / "runs")))
    return file


def test_train_ends_with_the_result_as_json(config_file, tmp_path, capsys):
    assert main(["train", str(config_file), "--json", "--set", "train.steps=1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"run_dir": str(tmp_path / "runs" / "a"), "status": "finished", "steps": 1, "evaluations": []}
    assert main(["train", str(config_file)]) == 2  # a run is never overwritten ...
    assert "agentrl resume" in capsys.readouterr().err
    assert main(["train", str(config_file), "--force", "--json", "--set", "train.steps=1"]) == 0  # ... unless told


def test_dry_run_writes_nothing(config_file, tmp_path, capsys):
    assert main(["train", str(config_file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "optim.lr" in out and "mine.yaml" in out and "time" in out
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_run_exits_with_130(tmp_path, capsys):
    done = FinishedRun(tmp_path / "a", TrainResult("stopped", 7))
    assert report(done, as_json=False) == 130
    assert report(done, as_json=True) == 130
    assert json.loads(capsys.readouterr().out) == {
        "run_dir": str(tmp_path / "a"), "status": "stopped", "steps": 7, "evaluations": []
    }  # fmt: skip


def test_resume_goes_on_from_the_last_checkpoint(finished_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    before = (copy / "metrics.jsonl").read_bytes()
    assert main(["resume", str(copy), "--json"]) == 2
    assert "has finished its 2 steps" in capsys.readouterr().err
    assert (copy / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(copy / "checkpoints" / "step-000002")  # killed before it was written
    assert main(["resume", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2
    assert (copy / "checkpoints" / "step-000002" / "manifest.json").exists()


def test_resume_names_the_nearest_run(finished_run, capsys):
    assert main(["resume", str(finished_run.with_name("aa"))]) == 2
    assert "did you mean 'a'?" in capsys.readouterr().err
