"""`agentrl.plugins`, and one plug-in of each kind from tests/plugins_package: each changes a real run or command."""

import json
import os
import re
import subprocess
import sys
import tomllib

import gymnasium
import httpx
import pytest
from pydantic import ValidationError

from agentrl import envs, plugins
from agentrl.algorithms import advantages, group_gradient_weight
from agentrl.cli import main
from agentrl.config import RunConfig
from agentrl.errors import AgentRLError, AlgorithmError, ConfigError, PluginError
from agentrl.runs.read import read_alarms, read_metrics, read_rollouts
from agentrl.train.build import build_job
from agentrl.train.start import train_run
from tests.guests import PACKAGE, distribution
from tests.small import merged, without_times

LETTERS = {
    "name": "letters",
    "model": {"device": "cpu", "threads": 1, "tiny": {"hidden_size": 32, "intermediate_size": 32, "max_positions": 64}},
    "world": {"kind": "letters", "kwargs": {"letters": "abcde"}},
    "rollout": {"prompts_per_step": 2, "group_size": 4, "max_tokens_per_turn": 6, "max_context": 32},
    "train": {"steps": 2, "probe_size": 0},
    "eval": {"questions": 0},
    "log": {"name": "a", "checkpoint_every": 0, "rollout_groups": -1},
}


@pytest.fixture
def guests(tmp_path, monkeypatch):
    """The package outside the tree, as if it were installed; its folders as PYTHONPATH."""
    folder = distribution(tmp_path / "site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(str(PACKAGE))
    plugins.forget_installed()
    envs.register_envs()
    yield os.pathsep.join([str(PACKAGE), folder])
    gymnasium.registry.pop("guests/Echo-v0", None)
    plugins.forget_installed()


def run_of(folder, **changes):
    """(run directory, metrics, recorded episodes) of two steps."""
    config = RunConfig.model_validate(merged(merged(LETTERS, {"log": {"runs_dir": str(folder)}}), changes))
    path = train_run(config, quiet=True, force=True).run_dir
    rows = [row for step in range(config.train.steps) for row in read_rollouts(path, step)]
    return path, without_times(read_metrics(path)), rows


def test_a_world_and_an_environment_of_a_package_are_trained_in(guests, tmp_path):
    path, rows, _ = run_of(tmp_path, log={"trackers": ["lines"]})
    assert len(rows) == 2 and 0 < rows[0]["reward"] < 1 and rows[0]["turns"] == 1
    written = (path / "lines.txt").read_text().split()  # the tracker has every step
    assert written == [str(x) for row in rows for x in (row["step"], row["reward"])]
    _, doubled, _ = run_of(tmp_path, env={"kwargs": {"factor": 0.5}})
    assert doubled[0]["reward"] == pytest.approx(rows[0]["reward"] / 2)


def test_an_advantage_a_loss_and_token_weights_change_a_run(guests, tmp_path):
    def tokens(**algorithm):
        _, metrics, rows = run_of(tmp_path, algorithm={"name": "dr_grpo", **algorithm}, train={"steps": 1})
        return metrics[0], [a for row in rows for a in (turn["advantages"] for turn in row["turns"])]

    metrics, plain = tokens()
    _, doubled = tokens(name="doubled")
    assert any(a for turn in plain for a in turn)
    assert [[2 * a for a in turn] for turn in plain] == [pytest.approx(turn, abs=1e-4) for turn in doubled]
    _, halved = tokens(name="guests.advantage:halved")
    assert [[a / 2 for a in turn] for turn in plain] == [pytest.approx(turn, abs=1e-4) for turn in halved]
    _, weighted = tokens(token_weights=["first_tokens"])
    expected = [[a * (1 if i < 3 else 0.5) for i, a in enumerate(turn)] for turn in plain]
    assert expected == [pytest.approx(turn, abs=1e-4) for turn in weighted]
    changed, same = tokens(loss={"name": "unclipped"})
    assert same == plain and changed["pg_loss"] != pytest.approx(metrics["pg_loss"], rel=1e-3)


def test_an_engine_of_a_package_trains(guests, tmp_path):
    _, rows, _ = run_of(tmp_path, engine="half_speed", optim={"lr": 1e-3}, train={"steps": 1})
    assert rows[0]["lr"] == pytest.approx(5e-4)
    with pytest.raises(ValidationError, match="no engine 'halfspeed'; did you mean 'half_speed'"):
        RunConfig.model_validate(merged(LETTERS, {"engine": "halfspeed"}))


def test_a_token_weight_has_scores_where_one_update_would_need_none(guests, tmp_path):
    """With one update a batch, log π_old is that of the update's own pass, which comes after the weights."""
    settings = {"algorithm": {"token_weights": ["guests.token_weight:by_entropy"]}}
    _, _, rows = run_of(tmp_path, **settings, train={"mini_batches": 1, "steps": 1})
    assert any(a for row in rows for turn in row["turns"] for a in turn["advantages"])


def test_a_plug_in_row_has_traits_that_rules_ask(guests):
    def refused(**algorithm):
        with pytest.raises(ValidationError) as caught:
            RunConfig.model_validate(merged(LETTERS, {"algorithm": algorithm}))
        return str(caught.value)

    assert "has none for rewards of 0" in refused(name="guests.advantage:NO_PENALTY", nthr={"enabled": True})
    assert "doubled has no K" in refused(name="doubled", k=2)
    assert "no 'DOUBLE'; did you mean 'DOUBLED'" in refused(name="guests.advantage:DOUBLE")
    assert "is a str, not an Advantage or a function" in refused(name="guests.advantage:__doc__")
    assert "no advantage 'double'; did you mean 'doubled'" in refused(name="double")


def test_a_plug_in_without_a_surrogate_says_so(guests):
    import torch

    with pytest.raises(AlgorithmError, match="names no surrogate"):
        group_gradient_weight("guests.advantage:halved", torch.tensor(0.5))
    got = advantages("guests.advantage:halved", torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    assert got.tolist() == [0.25, -0.25]


def test_a_reward_and_a_tool_change_what_an_environment_gives(guests, monkeypatch, capsys):
    import io

    def play(*arguments, lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        assert main(["env", "play", *arguments, "--question", "who?", "--answer", "cba"]) == 0
        return capsys.readouterr().out

    search = ("agentrl/Search-v0", "--set", "retriever=null")
    assert "reward 0.25" in play(*search, "--set", "reward=any_answer", lines=["<answer> x </answer>"])
    assert "reward 0," in play(*search, lines=["<answer> x </answer>"])
    tools = ("agentrl/Tools-v0", "--set", "tools=[calculator, reverse]")
    out = play(*tools, lines=["<reverse> abc </reverse>", "<calculator> 2*3 </calculator>", "<answer> cba </answer>"])
    assert "cba</result>" in out and "6</result>" in out and "The text backwards." in out and "reward 1," in out


def test_a_call_format_of_a_package_is_how_tools_are_called(guests):
    env = gymnasium.make("agentrl/ToolCalls-v0", call_format="shouted", disable_env_checker=True)
    prompt, _ = env.reset()
    assert '!tool_name({"argument":"value"})' in prompt
    assert env.step('I count.\n!calculator({"expression": "17*23+5"})')[-1]["messages"] == ["396"]


def test_an_environment_of_a_package_is_listed_checked_and_known_to_have_one_turn(guests, capsys):
    assert main(["env", "list"]) == 0 and "guests/Echo-v0" in capsys.readouterr().out
    main(["env", "check", "guests/Echo-v0"])
    assert "plays as step does" in capsys.readouterr().out
    llds = {"enabled": True, "answer_weight": "schedule"}
    own = {"world": None, "data": {"train": "x"}, "model": {"path": "y"}, "env": {"id": "guests/Echo-v0"}}
    for changes in ({}, own):
        with pytest.raises(ValidationError, match="a single turn has no searches"):
            RunConfig.model_validate(merged(LETTERS, {**changes, "algorithm": {"loss": {"llds": llds}}}))


def test_doctor_lists_what_is_installed_and_from_where(guests, tmp_path, capsys):
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    lines = {f["name"]: f["value"] for f in found if f["part"] == "plug-ins"}
    assert set(lines) == set(plugins.BUILTIN)
    assert lines["advantage"].endswith("doubled (agentrl-guests)") and "grpo, pos_only" in lines["advantage"]
    assert lines["world"] == "search, search_tools, arithmetic, geography; letters (agentrl-guests)"


def test_a_monitor_rule_and_a_sink_of_a_package_act_in_a_run(guests, tmp_path):
    written = tmp_path / "names.txt"
    path, rows, _ = run_of(tmp_path, monitors={"rules": ["low_reward"]}, log={"sinks": [f"names={written}"]})
    told = [a["rule"] for a in read_alarms(path)]  # in a first step that is like this one others speak, too
    assert rows[0]["reward"] < 0.5 and told.count("low_reward") == 1
    assert written.read_text().splitlines() == told


def test_a_format_of_logs_of_a_package_is_watched(guests, tmp_path, capsys):
    log = tmp_path / "run.ticks"
    log.write_text("tick 0 0.9\ntick 1 0.1\n")
    assert main(["watch", str(log), "--once", "--json", "--rule", "low_reward"]) in (0, 1)
    assert '"rule": "low_reward"' in capsys.readouterr().out


def test_every_kind_has_a_guest():
    groups = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(groups) == {f"agentrl.{kind.replace(' ', '_')}" for kind in plugins.BUILTIN}


@pytest.fixture
def corpus(tmp_path):
    rows = [{"id": str(i), "title": f"T{i}", "text": "kiln " * (1 + 10 * i)} for i in range(5)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "c.jsonl")


def found(index, query, capsys):
    capsys.readouterr()
    assert main(["retriever", "query", str(index), query, "--json", "-k", "2"]) == 0
    return [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]


def test_an_index_and_an_encoder_of_a_package_decide_what_is_found(guests, corpus, tmp_path, capsys):
    build = ["retriever", "build", corpus]
    assert main([*build, str(tmp_path / "words")]) == 0
    assert main([*build, str(tmp_path / "newest"), "--kind", "newest"]) == 0
    assert main([*build, str(tmp_path / "lengths"), "--encoder", "any", "--runtime", "lengths"]) == 0
    assert found(tmp_path / "words", "T1", capsys) == ["1"]
    assert found(tmp_path / "newest", "T1", capsys) == ["4", "3"]
    assert found(tmp_path / "lengths", "T1", capsys) == ["0", "1"]  # the shortest
    assert found(tmp_path / "lengths", "kiln " * 60, capsys)[0] == "4"


def test_a_dialect_of_a_package_answers(guests, corpus, tmp_path):
    assert main(["retriever", "build", corpus, str(tmp_path / "i")]) == 0
    command = [sys.executable, "-m", "agentrl.retriever", "serve", str(tmp_path / "i"), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([guests, os.environ.get("PYTHONPATH", "")])}
    answers = []
    for more in ([], ["--dialect", "titles"]):
        process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            url = re.search(r"http://[\w.:]+", process.stdout.readline())[0]
            answers.append(httpx.post(f"{url}/retrieve", json={"query": "T3", "topk": 1}, trust_env=False).json())
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert "result" in answers[0] and answers[1] == ["T3"]


def test_a_format_of_rollouts_of_a_package_is_imported(guests, tmp_path, capsys):
    (tmp_path / "run.said").write_text("3 0.5 hello there\n")
    assert main(["import", str(tmp_path / "run.said"), "--to", str(tmp_path / "r")]) == 0
    (row,) = read_rollouts(tmp_path / "r", 3)
    assert row["reward"] == 0.5 and row["turns"][0]["action"] == "hello there"


def test_the_guard_may_name_a_rule_of_a_package_that_runs(guests):
    named = {"guard": {"rules": ["low_reward"]}}
    with pytest.raises(ValidationError, match="no alarm is called 'low_reward'"):
        RunConfig.model_validate(merged(LETTERS, named))
    assert RunConfig.model_validate(merged(LETTERS, {**named, "monitors": {"rules": ["low_reward"]}}))


# ----------------------------------------------------------------------------------------------------- names and errors


@pytest.mark.parametrize("kind", plugins.BUILTIN)
def test_every_built_in_name_has_an_object(kind):
    for name in plugins.BUILTIN[kind]:
        if not plugins.BUILTIN[kind][name].startswith("agentrl.envs.mcp:"):  # needs an extra
            assert plugins.find(kind, name) is not None


def test_a_package_that_takes_a_built_in_name_is_reported_and_not_used(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(distribution(tmp_path, {"agentrl.reward": {"f1": "os:getcwd"}}, "thief"))
    plugins.forget_installed()
    try:
        assert plugins.find("reward", "f1")("b", ["b"]) == 1.0
        main(["doctor"])
        assert "reward 'f1' of thief is hidden by agentrl's own" in capsys.readouterr().out
    finally:
        plugins.forget_installed()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"name": "grop"}}, "no advantage 'grop'; did you mean 'grpo'"),
        ({"algorithm": {"loss": {"name": "clip"}}}, "no loss 'clip'; did you mean 'clipped'"),
        ({"algorithm": {"token_weights": ["entropy"]}}, "no token weight 'entropy'"),
        ({"algorithm": {"token_weights": ["nthr"]}}, "nthr.enabled: true switches on"),
        ({"world": {"kind": "serch"}}, "no world 'serch'; did you mean 'search'"),
        ({"world": {"kind": "search", "kwargs": {"people": 3}}}, "kwargs is for worlds of your own"),
        (
            {"world": {"kind": "m:World", "people": 3, "hops": [3]}},
            "hops, people belong to the built-in worlds",
        ),
        ({"log": {"trackers": ["tensorbord"]}}, "no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ({"guard": {"rules": ["collaps"]}}, "no alarm is called 'collaps'; did you mean 'collapse'"),
        ({"guard": {"rules": ["os:getcwd"]}}, "no alarm is called 'os:getcwd'"),
    ],
)
def test_names_that_do_not_exist(changes, message):
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(merged({"world": {}}, changes))


@pytest.mark.parametrize(
    ("line", "key", "nearest"),
    [
        ("guard: {rules: [collaps]}", "guard.rules", "'collapse'"),
        ("algorithm: {name: grop}", "algorithm.name", "'grpo'"),
        ("log: {trackers: [wandd]}", "log.trackers", "'wandb'"),
    ],
)
def test_the_config_key_stands_before_the_name(tmp_path, capsys, line, key, nearest):
    path = tmp_path / "c.yaml"
    path.write_text(f"world: {{}}\n{line}\n")
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert key in said and f"did you mean {nearest}" in said


def test_environments_that_cannot_be_made_name_the_key(tmp_path):
    def refused(**env):
        config = {"world": None, "data": {"train": "x"}, "model": {"path": "y"}, "env": env}
        from agentrl.train.build import environment_maker

        with pytest.raises(ConfigError) as caught:
            environment_maker(RunConfig.model_validate(config), None, tmp_path)
        return str(caught.value)

    told = refused(id="agentrl/Toolz-v0")
    assert "env.id: there is no environment 'agentrl/Toolz-v0'" in told and "did you mean 'agentrl/Tools-v0'" in told
    told = refused(id="agentrl/Tools-v0", kwargs={"tools": ["calculater"]})
    assert "env.kwargs (tools = ['calculater'])" in told and "did you mean 'calculator'" in told


def test_a_world_that_lacks_what_the_run_asks_is_refused(guests, tmp_path):
    for changes, message in (
        ({"warm_start": {}}, "world.kind letters has no demonstration, practice"),
        ({"world": {"kwargs": {"leters": "a"}}}, r"letters cannot be made with world.kwargs \(.*leters = 'a'\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_job(RunConfig.model_validate(merged(LETTERS, changes)), tmp_path)


def test_what_cannot_be_imported_is_explained(tmp_path):
    with pytest.raises(PluginError, match="reward 'nowhere:x': nowhere:x cannot be imported: No module"):
        plugins.find("reward", "nowhere:x")
    with pytest.raises(PluginError, match=r"agentrl\.envs\.scoring has no 'f2'; did you mean 'f1'"):
        plugins.find("reward", "agentrl.envs.scoring:f2")
    assert issubclass(PluginError, AgentRLError)


# ------------------------------------------------------------------------------------------------- the current folder


def cli(*arguments, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)


MINE = """
import gymnasium
gymnasium.register("mine/Mine-v0", entry_point="agentrl.envs.calculator:CalculatorEnv")
"""


@pytest.fixture
def common_names(tmp_path):
    """A folder with its own envs/ and retriever/, and a module with an environment."""
    for name in ("envs", "retriever"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not agentrl')\n")
    (tmp_path / "myenv.py").write_text(MINE)
    (tmp_path / "json.py").write_text("raise ImportError('hidden')\n")
    return tmp_path


def test_a_module_of_the_current_folder_is_found_and_hides_nothing(common_names, monkeypatch, capsys):
    monkeypatch.chdir(common_names)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["env", "check", "myenv:mine/Mine-v0"]) == 0
    assert sys.path[-1] == str(common_names) and "0 errors" in capsys.readouterr().out
    gymnasium.registry.pop("mine/Mine-v0")
    sys.modules.pop("myenv")


@pytest.mark.parametrize("way", ["PYTHONPATH=.", "python -m agentrl"])
def test_it_works_in_a_folder_that_has_its_own_envs(common_names, way):
    (common_names / "json.py").unlink()
    root = str(PACKAGE.parent.parent)
    arguments = [sys.executable, "-m", "agentrl"]
    path = os.pathsep.join([".", root])
    if way != "PYTHONPATH=.":
        path = root
    else:
        arguments = [sys.executable, "-P", "-c", "import sys; from agentrl.cli import main; sys.exit(main())"]
    done = cli(*arguments, "env", "play", "myenv:mine/Mine-v0", cwd=common_names, PYTHONPATH=path)
    assert done.returncode == 0 and "Problem: 17 boxes" in done.stdout, done.stderr
