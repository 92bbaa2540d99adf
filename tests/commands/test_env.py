"""`env list | check | play` from the command line; the tools themselves are tested with the environments."""

import io
import json

import gymnasium
import pytest

from agentrl.cli import main
from agentrl.envs.spaces import AnyText


class Numbers(gymnasium.Env):
    """An environment that is not about text."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = AnyText()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 1, {}

    def step(self, action):
        return 1, 0.0, True, False, {}


@pytest.fixture
def numbers():
    gymnasium.register("tests/Numbers-v0", entry_point=Numbers)
    yield "tests/Numbers-v0"
    del gymnasium.registry["tests/Numbers-v0"]


def test_list_names_every_environment_and_its_parameters(numbers, capsys):
    assert main(["env", "list", "--json"]) == 0
    found = {e["id"]: e for e in json.loads(capsys.readouterr().out)}
    assert {"agentrl/Search-v0", "agentrl/Math-v0", "tests/Numbers-v0"} <= set(found)
    assert found["agentrl/Search-v0"]["parameters"]["topk"] == "3"
    assert main(["env", "list"]) == 0
    out = capsys.readouterr().out
    assert "agentrl/Search-v0" in out and "max_turns" in out and "CartPole" not in out


def test_check_passes_the_built_in_and_fails_what_is_no_text(numbers, capsys):
    assert main(["env", "check", "agentrl/Search-v0", "--set", "topk=2"]) == 0
    assert "0 errors" in capsys.readouterr().out
    assert main(["env", "check", numbers]) == 1
    assert "observations are int" in capsys.readouterr().out
    assert main(["env", "check", numbers, "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    assert not out["ok"] and any(f["level"] == "error" and f["check"] == "text" for f in out["findings"])


def test_play_asks_the_question_given(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("<answer> Lisbon </answer> and more\n"))
    code = main(["env", "play", "agentrl/Search-v0", "--question", "Where is the Tagus mouth?", "--answer", "Lisbon"])
    out = capsys.readouterr().out
    assert code == 0 and "Where is the Tagus mouth?" in out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["play", "agentrl/Serch-v0"], "did you mean 'agentrl/Search-v0'?"),
        (["play", "no_such_module:Own/Env-v0"], "no_such_module"),
        (["play", "agentrl/Search-v0", "--set", "topkk=3"], "it takes retriever"),
        (["play", "agentrl/Search-v0", "--set", "topk=0"], "topk is 0"),
        (["play", "agentrl/Search-v0", "--set", "topk"], "expected KEY=VALUE"),
        (["play", "agentrl/Search-v0", "--set", "topk=[1"], "is not YAML"),
        (["play", "agentrl/Search-v0", "--question", "Why?"], "belong together"),
    ],
)
def test_mistakes_are_named(capsys, arguments, wanted):
    assert main(["env", *arguments]) == 2
    assert wanted in capsys.readouterr().err
