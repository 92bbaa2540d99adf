"""The checklist for the first GPU, as far as a machine without one can go: its steps, their configs, its models."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_checklist.sh"


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=120)


def test_it_is_a_script_and_lists_what_each_step_proves():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    lines = run("--list").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    functions = re.findall(r"^step_([\w.-]+)\(\)", SCRIPT.read_text(), re.MULTILINE)
    assert sorted(names) == sorted(functions) and len(set(names)) == len(names)
    for needed in ("colocated", "split", "tp2", "killed-asleep", "resume-cluster", "resume-local", "asynchronous",
                   "vllm-sampler", "fused-adam", "estimate-7b"):  # fmt: skip
        assert needed in names


def test_every_step_has_a_config_that_a_run_would_take(tmp_path):
    done = run("--parse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"parsed 1[4-9] configs: .*colocated.*tp2", done.stdout)
    lines = (tmp_path / "configs.txt").read_text().splitlines()
    (tmp_path / "configs.txt").write_text(lines[0] + "\topenrlhf.colocated=true\n")
    again = [sys.executable, "scripts/gpu_checks.py", "parse", str(tmp_path / "configs.txt")]
    wrong = subprocess.run(again, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert wrong.returncode != 0 and "did you mean" in wrong.stderr


def test_an_option_that_is_none():
    assert run("--lst").returncode == 2


def test_without_a_gpu_nothing_passes(tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU")
    done = run("--out", str(tmp_path))
    assert done.stdout and all(line.startswith("not proven here") for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_model_of_a_shape_has_a_tokenizer_for_all_its_ids(tmp_path):
    command = [sys.executable, "scripts/gpu_checks.py", "model", "tiny", str(tmp_path / "m")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    from transformers import PreTrainedTokenizerFast

    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert len(PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")) == config["vocab_size"] == 2000
    assert config["dtype"] == "bfloat16" and (tmp_path / "m" / "model.safetensors").is_file()
