"""`agentrl env new`: what it writes is installed, found, checked and trained at once."""

import json
import os
import subprocess
import sys
import tomllib

import gymnasium
import pytest

from agentrl import envs, plugins
from agentrl.cli import main
from agentrl.commands.env_new import FILES, write_package
from agentrl.config.files import load_config
from agentrl.errors import AgentRLError
from agentrl.runs.read import read_evals, read_metrics
from agentrl.train.start import train_run
from tests.guests import distribution


@pytest.fixture
def my_env(tmp_path, monkeypatch):
    """The generated package as if it were installed: its folder and its entry points are found."""
    assert main(["env", "new", "my_env", "--out", str(tmp_path / "mine")]) == 0
    project = tomllib.loads((tmp_path / "mine" / "pyproject.toml").read_text())["project"]
    site = distribution(tmp_path / "site", project["entry-points"], project["name"])
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([site, str(tmp_path / "mine"), os.environ.get("PYTHONPATH", "")]))
    plugins.forget_installed()
    envs.register_envs()
    yield tmp_path / "mine"
    gymnasium.registry.pop("my_env/MyEnv-v0", None)
    for module in [name for name in sys.modules if name.partition(".")[0] == "my_env"]:
        del sys.modules[module]
    plugins.forget_installed()


def test_it_is_listed_with_where_it_comes_from_and_trains_at_once(my_env, capsys):
    capsys.readouterr()
    assert main(["env", "list", "--json"]) == 0
    found = {e["id"]: e for e in json.loads(capsys.readouterr().out)}
    assert found["my_env/MyEnv-v0"]["origin"] == "my-env" and found["agentrl/Search-v0"]["origin"] == "built in"
    assert main(["env", "list"]) == 0 and "(my-env)" in capsys.readouterr().out
    runs = my_env.parent / "runs"
    changes = ["train.steps=2", "warm_start.demonstrations=32", f"log.runs_dir={runs}", "log.name=a"]
    run = train_run(load_config(my_env / "train.yaml", changes).config, quiet=True).run_dir
    assert len(read_metrics(run)) == 2 and all(row["failed_rollouts"] == 0 for row in read_metrics(run))
    assert {row["n"] for row in read_evals(run)} == {4}


@pytest.mark.slow
def test_its_own_test_passes_and_its_config_learns(my_env):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests"], cwd=my_env, capture_output=True, text=True)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr
    config = load_config(my_env / "train.yaml", [f"log.runs_dir={my_env.parent / 'runs'}", "log.name=b"]).config
    rows = read_metrics(train_run(config, quiet=True).run_dir)
    assert sum(r["reward"] for r in rows[-3:]) > sum(r["reward"] for r in rows[:3]) + 0.3


def test_a_folder_that_is_there_and_a_name_that_is_none_are_refused(tmp_path):
    write_package("other", tmp_path / "other")
    assert len(list((tmp_path / "other").rglob("*.*"))) >= len(FILES)
    with pytest.raises(AgentRLError, match="is there already"):
        write_package("other", tmp_path / "other")
    for name, hint in (("My-Env", "such as my_env"), ("class", "such as"), ("agentrl", "another package's name")):
        with pytest.raises(AgentRLError, match=hint):
            write_package(name, tmp_path / "x")
    assert not (tmp_path / "x").exists()
