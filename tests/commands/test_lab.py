"""`lab` and `plot` from the command line: what they print and write, and what they refuse before any work."""

import gc
import json

import pytest

from agentrl.cli import main
from agentrl.config.files import load_config
from agentrl.train.start import train_run
from tests.small import small_config

QUICK = ["--questions", "2"]


@pytest.fixture(scope="module")
def trained(warm_model, tmp_path_factory):
    """A run of one step from the warm model."""
    config = small_config(
        tmp_path_factory.mktemp("runs"), warm_model, train={"steps": 1}, log={"checkpoint_every": 1}, optim={"lr": 1e-4}
    )
    return train_run(config, quiet=True).run_dir


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_delta_prints_a_table_and_writes_figures(trained, tmp_path, capsys):
    assert main(["lab", "delta", str(trained), *QUICK, "--out", str(tmp_path), "--methods", "grpo,nthr"]) == 0
    out = capsys.readouterr().out
    assert "one update: sgd, lr 0.001" in out and "above grpo" in out
    assert {p.name for p in tmp_path.iterdir()} == {f"delta-{t}.{k}" for t in ("light", "dark") for k in ("png", "svg")}


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-4), ("run", 1e-4)])
def test_delta_by_other_optimisers_as_json(trained, tmp_path, capsys, optimizer, lr):
    command = ["lab", "delta", str(trained), *QUICK, "--out", str(tmp_path), "--methods", "grpo"]
    assert main([*command, "--optimizer", optimizer, "--json"]) == 0
    out = result(capsys)
    assert (out["optimizer"], out["lr"]) == (optimizer, lr) and len(out["per_response"]["grpo"]) == 2
    assert main([*command, "--optimizer", optimizer, "--json"]) == 0
    assert result(capsys) == out


def test_identify(trained, capsys):
    assert main(["lab", "identify", str(trained), *QUICK, "--top", "1", "--json"]) == 0
    out = result(capsys)
    assert out["top"] == 1 and out["expected"] == 0.5 and len(out["gwhes"]) == 2
    assert main(["lab", "identify", str(trained), *QUICK]) == 0
    assert "top-2 overlap of GWHES with the lowest Δ(x): 2/2 (random: 2.0)" in capsys.readouterr().out


def test_tokens(trained, tmp_path, capsys):
    command = ["lab", "tokens", str(trained), *QUICK, "--out", str(tmp_path)]
    assert main([*command, "--question", "1"]) == 0
    out = capsys.readouterr().out
    assert "question:" in out and "\x1b" not in out
    assert "<title>NTHR scores" in (tmp_path / "tokens.html").read_text()
    assert main([*command, "--question", "2"]) == 2
    assert "there are 2 mixed groups, from 0" in capsys.readouterr().err


def test_spiral(trained, tmp_path, capsys, caplog):
    command = ["lab", "spiral", str(trained), "--methods", "grpo,llds", "--steps", "1", "--lr", "1e-3"]
    assert main([*command, "--out", str(tmp_path), "--seed", "4", "--json"]) == 0
    gc.collect()
    said = capsys.readouterr()
    assert "Task was destroyed" not in said.err + caplog.text  # environments and event loops of each run are closed
    rows = json.loads(said.out.splitlines()[-1])["rows"]
    assert set(rows) == {"grpo", "llds"} and len(rows["grpo"]) == 1 and rows["grpo"][0]["lr"] == 1e-3
    assert (tmp_path / "spiral-dark.png").exists()
    used = load_config(tmp_path / "spiral" / "llds" / "config.yaml").config
    assert (used.train.mini_batches, used.train.epochs, used.rollout.prompts_per_step) == (4, 2, 8)  # the harsh setting
    assert (used.seed, used.world.seed) == (4, 3)  # the world is the run's


def test_what_the_user_sets_goes_over_the_harsh_setting(trained, tmp_path, capsys):
    command = ["lab", "spiral", str(trained), "--methods", "llds", "--steps", "1", "--out", str(tmp_path)]
    assert main([*command, "--set", "train.epochs=1", "--set", "algorithm.loss.llds.weight=0.7"]) == 0
    used = load_config(tmp_path / "spiral" / "llds" / "config.yaml").config
    assert (used.train.mini_batches, used.train.epochs, used.algorithm.loss.llds.weight) == (4, 1, 0.7)
    assert "last 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("delta RUN --methods grpo,ntrh", "did you mean 'nthr'"),
        ("delta RUN --questions 0", "--questions 0: give 1 or more"),
        ("delta RUN --updates 0", "--updates 0: give 1 or more"),
        ("delta RUN --lr 0", "give a positive number"),
        ("delta RUN --lr nan", "give a positive number"),
        ("delta RUN --optimizer run --lr 1", "drop one of them"),
        ("delta RUN --step 7", "no checkpoint of step 7; there are 1"),
        ("identify RUN --top 0", "--top 0: give 1 or more"),
        ("tokens RUN --question -1", "--question -1: give 0 or more"),
        ("spiral RUN --steps 0", "--steps 0: give 1 or more"),
        ("spiral RUN --methods ,", "no method is named"),
        ("delta RUN --set engine=openrlhf", "engine"),
        ("delta /nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_mistakes_are_named(trained, capsys, command, wanted):
    arguments = [str(trained) if a == "RUN" else a for a in command.split()]
    assert main(["lab", *arguments]) == 2
    said = capsys.readouterr()
    assert wanted in said.err and "Traceback" not in said.err


def test_plot_surrogates(tmp_path, capsys):
    assert main(["plot", "surrogates", "grpo", "rloo_k", "--k", "3", "--out", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"s-{t}.{k}") for t in ("light", "dark") for k in ("png", "svg")
    ]
    assert main(["plot", "surrogates", "gpro"]) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err
