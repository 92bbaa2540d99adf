"""The mathematics job from the command line, shortened: reinforcement learning raises held-out accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.runs.read import read_metrics


@pytest.mark.slow
def test_math_tiny_learns_to_work_every_step(tmp_path):
    command = [sys.executable, "-m", "agentrl.cli", "train", "math_tiny", "--json"]
    for change in ("train.steps=20", "eval.every=0", f"log.runs_dir={tmp_path}", "log.name=math"):
        command += ["--set", change]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    before, after = result["evaluations"]
    assert before["n"] == after["n"] == 400 and before["failed"] == after["failed"] == 0
    # Demonstrations guess more than half of the time on three of the four levels: those are what RL has to change.
    assert 0.1 <= before["em"] <= 0.5
    assert after["em"] >= before["em"] + 0.2  # eight standard errors of one accuracy; without updates it is 0
    assert sum(after[f"em_level_{n}"] > before[f"em_level_{n}"] + 0.2 for n in (2, 3, 4)) >= 2
    rows = read_metrics(Path(result["run_dir"]))
    assert all(row["mismatch_max"] < 1e-3 for row in rows)
    mixed = [1 - row["groups_all_wrong"] - row["groups_all_correct"] for row in rows[:5]]
    assert sum(mixed) / len(mixed) > 0.6  # neither starved nor idle
