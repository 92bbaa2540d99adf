"""`--json` of every command is JSON as any parser reads it, also where a number is NaN or infinite.

Python's own writer prints NaN and Infinity, which no standard knows, and Python's own reader takes them.
"""

import argparse
import gzip
import json
import math
import re
import shutil

import pytest

from agentrl import cli
from agentrl.commands import quickstart
from agentrl.retriever import opening
from agentrl.retriever.corpus import Passage
from agentrl.train import start
from agentrl.train.start import FinishedRun, train_run
from agentrl.train.trainer import TrainResult
from tests.small import small_config
from tests.test_cli import paths_of

EVALUATION = {"step": 1, "em": math.nan, "reward": -math.inf, "n": 0}


@pytest.fixture(scope="module")
def run(warm_model, tmp_path_factory):
    config = small_config(
        tmp_path_factory.mktemp("runs"), warm_model, train={"steps": 1}, eval={"questions": 2},
        log={"checkpoint_every": 1, "rollout_groups": -1},
    )  # fmt: skip
    return train_run(config, quiet=True).run_dir


@pytest.fixture(scope="module")
def poisoned(run, tmp_path_factory):
    """The same run with NaN and infinite numbers in every file of records."""
    copy = tmp_path_factory.mktemp("poisoned") / "a"
    shutil.copytree(run, copy)
    for file in copy.glob("*.jsonl"):
        file.write_text(_poisoned(file.read_text()))
    alarm = {"id": "x", "step": 0, "rule": "collapse", "level": "warn", "message": "m", "remedy": "",
             "signals": {"reward": {"value": math.nan, "threshold": math.inf}}}  # fmt: skip
    (copy / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    for file in copy.rglob("rollouts/*.gz"):
        file.write_bytes(gzip.compress(_poisoned(gzip.decompress(file.read_bytes()).decode()).encode()))
    assert "NaN" in (copy / "metrics.jsonl").read_text()
    return copy


def _poisoned(text):
    text = re.sub(r'"(reward|em)": [-0-9.e]+', r'"\1": NaN', text)
    return re.sub(r'"(t_step_s|seconds|latency_s)": [-0-9.e]+', r'"\1": Infinity', text)


@pytest.fixture
def no_numbers(monkeypatch, tmp_path):
    """What takes long, or cannot be made to have no number, returns NaN."""
    done = FinishedRun(tmp_path, TrainResult("finished", 1, [EVALUATION]))
    monkeypatch.setattr(start, "train_run", lambda *args, **kwargs: done)
    monkeypatch.setattr(start, "resume_run", lambda *args, **kwargs: done)
    told = {"em_before": math.nan, "em_after": math.inf, "seconds": 1.0, "run_dir": str(tmp_path)}
    monkeypatch.setattr(quickstart, "quickstart", lambda *args, **kwargs: told)

    class Searcher:
        def search_batch(self, queries, topk):
            return [[(Passage("1", "t", "x"), math.nan), (Passage("2", "t", "y"), -math.inf)] for _ in queries]

    monkeypatch.setattr(opening, "open_searcher", lambda where: Searcher())
    log = "step,reward,entropy\n" + "".join(f"{i},{0.5 if i < 30 else 'nan'},inf\n" for i in range(60))
    (tmp_path / "log.csv").write_text(log)
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "title": "t", "text": "x"}\n')
    return tmp_path


COMMANDS = {
    ("quickstart",): lambda run, bad, tmp: [],
    ("train",): lambda run, bad, tmp: [run / "config.yaml"],
    ("resume",): lambda run, bad, tmp: [run],
    ("eval",): lambda run, bad, tmp: [run, "--samples", "2", "--questions", "1"],
    ("export",): lambda run, bad, tmp: [run, tmp / "model"],
    ("rollouts", "show"): lambda run, bad, tmp: [bad, "--limit", "0"],
    ("runs",): lambda run, bad, tmp: [bad.parent],
    ("alarms",): lambda run, bad, tmp: [bad],
    ("watch",): lambda run, bad, tmp: [tmp / "log.csv", "--once"],
    ("env", "list"): lambda run, bad, tmp: [],
    ("env", "check"): lambda run, bad, tmp: ["agentrl/Calculator-v0"],
    ("retriever", "build"): lambda run, bad, tmp: [tmp / "corpus.jsonl", tmp / "index"],
    ("retriever", "query"): lambda run, bad, tmp: ["index", "who?"],
    ("lab", "delta"): lambda run, bad, tmp: [run, "--questions", "1", "--methods", "grpo", "--out", tmp],
    ("lab", "identify"): lambda run, bad, tmp: [run, "--questions", "1", "--out", tmp],  # no correlation of one
    ("lab", "tokens"): lambda run, bad, tmp: [run, "--questions", "1", "--out", tmp],
    ("lab", "spiral"): lambda run, bad, tmp: [run, "--steps", "1", "--methods", "grpo", "--out", tmp],
    ("doctor",): lambda run, bad, tmp: [],
}


def with_json(parser, prefix=()):
    """The paths of all commands that have the option."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from with_json(below, (*prefix, name))
        elif "--json" in action.option_strings:
            yield prefix


def test_every_command_with_json_is_tried_here():
    parser = cli.build_parser()
    elsewhere = {("real",)}  # trains for a while: tests/commands/test_real.py
    assert {*with_json(parser)} - elsewhere == set(COMMANDS) <= {*paths_of(parser)}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_a_command_prints_is_json(command, run, poisoned, no_numbers, capsys):
    arguments = [str(a) for a in COMMANDS[command](run, poisoned, no_numbers)]
    assert cli.main([*command, *arguments, "--json"]) in (0, 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines

    def refuse(text):
        pytest.fail(f"{text} is not JSON")

    read = [json.loads(line, parse_constant=refuse) for line in lines]
    assert all(isinstance(row, dict | list) for row in read)
