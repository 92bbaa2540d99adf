"""The default job from the command line, whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.runs.read import read_eval_rollouts, read_evals, read_info, read_metrics, read_rollouts


@pytest.mark.slow
def test_quickstart_learns_to_search(tmp_path):
    command = [sys.executable, "-m", "agentrl.cli", "quickstart", "--json", "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"em_before", "em_after", "seconds", "run_dir"}
    assert result["em_before"] <= 0.30 and result["em_after"] >= 0.85
    run = Path(result["run_dir"])
    last = read_evals(run)[-1]
    assert last["em_2hop"] >= 0.8 and last["em_1hop"] >= 0.8  # it searches twice where it must
    assert read_info(run).status == "finished"
    rows = read_metrics(run)
    assert all(row["mismatch_max"] < 1e-3 for row in rows)  # sampler and scorer are one policy
    assert len(read_eval_rollouts(run)) == last["n"]
    tokens = [turn for row in read_rollouts(run, 0) for turn in row["turns"]]
    assert any("nthr_scores" in turn for turn in tokens)
