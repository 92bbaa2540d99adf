"""What a wheel installs: `agentrl` alone at the top level, with the linked folders in it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("agentrl", "envs", "retriever", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_a_wheel_holds_agentrl_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in PARTS:  # built in a copy: setuptools leaves its traces where it works
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {n.split("/")[0] for n in names if ".dist-info/" not in n and ".data/" not in n}
    assert top == {"agentrl"}
    for folder in ("envs", "retriever"):
        modules = {f"agentrl/{folder}/{p.relative_to(ROOT / folder).as_posix()}" for p in (ROOT / folder).rglob("*.py")}
        assert modules and modules <= names
    assert {f"agentrl/envs/answers/{name}.jsonl" for name in ("answers", "attacks")} <= names
    static = {
        f"agentrl/{p.relative_to(ROOT / 'agentrl').as_posix()}"
        for p in (ROOT / "agentrl").rglob("static/**/*")
        if p.is_file()
    }
    assert static and static <= names and "agentrl/py.typed" in names
    configs = {p.name for p in (ROOT / "configs").glob("*.yaml")}
    assert configs <= {n.split("/")[-1] for n in names if "share/agentrl/configs/" in n}
