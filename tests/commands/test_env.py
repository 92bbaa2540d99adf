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
        (
            ["play", "json:Own/Env-v0"],
            'json was imported and registers no Own/Env-v0: call gymnasium.register("Own/Env',
        ),
        (["play", "no_such_module:Own/Env-v0"], "there is no module 'no_such_module'; it is looked for in the current"),
        (["play", "Reachr-v0"], "one of your own is written module:Namespace/Name-v0, and its module calls gymnasium"),
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


def test_an_own_module_that_registers_nothing_is_told_how(tmp_path, monkeypatch, capsys):
    """No robot arm is suggested, whatever asks for it."""
    (tmp_path / "mine_alone.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "q", "golden_answers": ["a"]}\n')
    name = "mine_alone:Reach/Mine-v0"
    assert main(["env", "check", name]) == 1
    assert main(["env", "play", name]) == 2
    changes = ["world=null", f"data.train={questions}", "warm_start=null", f"model.path={tmp_path}", "log.name=n"]
    sets = [part for change in (*changes, f"env.id={name}") for part in ("--set", change)]
    assert main(["train", "search_tiny", "--dry-run", *sets]) == 2
    assert main(["train", "search_tiny", "--dry-run", "--json", *sets]) == 2
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.count("mine_alone was imported and registers no Reach/Mine-v0: call gymnasium.register") == 4
    assert "Reacher" not in text and "docs/environments.md" in text


def test_a_dry_run_refuses_what_the_environment_does_not_take(capsys):
    assert main(["train", "search_tiny", "--dry-run", "--set", "env.kwargs.prompt=x {question}"]) == 2
    assert "env.kwargs.prompt: agentrl/Search-v0 has no such parameter; did you mean 'prompt_template'?" in (
        capsys.readouterr().out
    )


def test_what_an_own_module_misses_itself_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_broken.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["env", "play", "mine_broken:Mine/Env-v0"]) == 2
    said = "mine_broken cannot be imported: No module named 'a_package_that_nobody_has'"
    assert said in capsys.readouterr().err


MIXTURE = """
model: {path: "builtin:tiny"}
env:
  - {world: {kind: search, people: 24, companies: 10, cities: 8, regions: 6}}
  - {name: sums, world: {kind: arithmetic}, kwargs: {format_reward: 0.1}}
"""


def test_the_environments_of_a_config_are_checked_and_tried_each(tmp_path, capsys):
    path = tmp_path / "mix.yaml"
    path.write_text(MIXTURE)
    assert main(["train", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "search: one step of agentrl/Search-v0" in out and "sums: one step of agentrl/Math-v0" in out
    assert main(["train", str(path), "--dry-run", "--set", "env.1.kwargs.format_rewrd=1"]) == 2
    wanted = "sums: problem, environment: env.kwargs.format_rewrd: agentrl/Math-v0 has no such parameter; did you mean"
    assert wanted in capsys.readouterr().out


@pytest.mark.slow
def test_check_takes_a_config(tmp_path, capsys):
    path = tmp_path / "mix.yaml"
    path.write_text(MIXTURE)
    assert main(["env", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path}, search: 0 errors" in out and f"{path}, sums: 0 errors" in out
