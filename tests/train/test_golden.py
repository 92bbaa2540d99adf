"""A whole run gives the numbers that it gave before; resuming compares a run with itself, this does not."""

import json
from pathlib import Path

import pytest

from agentrl.runs.read import read_evals, read_metrics, read_rollouts
from tests.train.golden import CASES, numbers, played

RECORDED = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_short_run_is_what_it_was(tmp_path, case):
    got, wanted = numbers(played(tmp_path, case), read_metrics, read_evals, read_rollouts), RECORDED[case]
    assert got["tokens"] == wanted["tokens"] and got["rewards"] == wanted["rewards"]
    for mine, theirs in zip(got["metrics"], wanted["metrics"], strict=True):
        for noise in ("mismatch", "mismatch_max", "kl_sampler"):  # of two ways to compute the same: rounding alone
            assert abs(mine.pop(noise)) < 1e-3 and abs(theirs.pop(noise)) < 1e-3
        mine.pop("llds_noise", None)  # not recorded: rounding, too
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)  # CPUs round differently
    for mine, theirs in zip(got["evals"], wanted["evals"], strict=True):
        assert mine == pytest.approx(theirs)
