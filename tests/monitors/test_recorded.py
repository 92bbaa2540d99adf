"""The collapse rule on the recorded runs, as `scripts/monitor_table.py` judges it: what docs/alarms.md claims."""

import csv
import importlib.util
import statistics
import sys
from pathlib import Path

import pytest

from agentrl.monitors import Monitor, StepRecord

SCRIPT = Path(__file__).parents[2] / "scripts" / "monitor_table.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("monitor_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def judged(table):
    return [(run, table.judge(run, table.Thresholds())) for run in table.load(table.DATA)]


def test_half_fall_of_small_lists(table):
    assert table.half_fall([0.8] * 10 + [0.0] * 20) == 12  # mean of five first below 0.4: two of 0.8 and three of 0
    assert table.half_fall([0.8] * 10 + [0.0] * 3 + [0.8] * 20) is None  # it comes back
    assert table.half_fall([0.1] * 10 + [0.0] * 20) is None  # there was nothing to lose


def test_every_half_fall_after_the_warm_up_is_warned_of(judged):
    late = [(r, o) for r, o in judged if r.half_fall is not None and r.half_fall >= 10]
    leads = [r.half_fall - o.warn for r, o in late]
    assert len(late) >= 18 and min(leads) > 0 and statistics.median(leads) >= 20


def test_healthy_runs_are_left_alone(judged):
    healthy = [o for r, o in judged if r.kind == "healthy"]
    assert len(healthy) >= 25
    assert [o.critical for o in healthy if o.critical is not None] == []
    assert sum(o.warn is not None for o in healthy) <= len(healthy) / 10


def test_without_clip_fraction_and_delta_warnings_are_fewer_but_not_false(table):
    """What a trainer with one update per batch logs."""
    few = table.load(table.DATA, {"reward", "entropy", "grad_norm", "response_length"})
    outcomes = [(run, table.judge(run, table.Thresholds())) for run in few]
    fell = [(r, o) for r, o in outcomes if r.half_fall is not None and r.half_fall >= 10]
    early = sum(o.warn is not None and o.warn < r.half_fall for r, o in fell)
    assert len(fell) / 2 <= early < len(fell)
    assert sum(o.warn is not None for r, o in outcomes if r.kind == "healthy") <= 2


#: provoked cause -> the story that an alarm names first.
CAUSES = {
    "control": None,
    "retriever_empty": "tool or data changed",
    "passages_replaced": "tool or data changed",
    "answers_shuffled": "tool or data changed",
    "lr_x10": "updates too large",
    "nan": "numerical failure",
    "sampler_differs": "train-inference mismatch",
    "hackable_reward": "reward hacking",
    "short_turns": "length explosion",
    "stale_weights": "train-inference mismatch",
    "entropy_bonus_reversed": "entropy collapse",
    "questions_exhausted": "data exhausted",
}
#: causes that work slowly: steps after which they are named at the latest; the others after five.
SLOW = {"entropy_bonus_reversed": 16, "questions_exhausted": 49}


def test_every_recorded_cause_is_tried(table):
    assert {p.stem for p in (table.DATA / "causes").glob("*.csv")} == set(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
def test_the_provoked_cause_is_named(table, cause):
    """From step 25 on one thing is broken (`scripts/provoke.py`)."""
    with open(table.DATA / "causes" / f"{cause}.csv", newline="") as handle:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    monitor, found = Monitor(), []
    for row in rows:
        found += [a for a in monitor.observe(StepRecord(int(row.pop("step")), row)) if a.story]
    if CAUSES[cause] is None:
        assert found == []
    else:
        assert found[0].story == CAUSES[cause] and 25 <= found[0].step <= 25 + SLOW.get(cause, 5)
