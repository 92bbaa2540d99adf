"""The collapse rule on the recorded runs, as `scripts/monitor_table.py` judges it: what docs/alarms.md claims."""

import csv
import importlib.util
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.monitors import SIGNALS, Monitor, StepRecord
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.signals import UNJUDGED

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


def test_healthy_runs_show_no_phase_of_a_collapse_and_falling_ones_do(table):
    shown = {"healthy": set(), "fell": set()}
    for run in table.load(table.DATA):
        monitor = Monitor(rules=[])
        for record in run.records:
            monitor.observe(record)
            shown.get(run.kind, set()).add(monitor.phase.phase)
    assert shown["healthy"] == {"warmup", "learning", "plateau"}
    assert shown["fell"] == {"warmup", "learning", "plateau", "II", "III"}


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


def test_the_table_of_causes_in_the_docs_is_what_the_rows_give():
    done = subprocess.run(
        [sys.executable, SCRIPT.with_name("rule_rates.py"), "--causes"], capture_output=True, text=True, check=True
    )
    docs = (SCRIPT.parents[1] / "docs" / "alarms.md").read_text()
    assert len(done.stdout.splitlines()) == len(CAUSES) and done.stdout in docs


@pytest.mark.slow
def test_no_rule_asks_for_the_past_of_what_is_not_kept(table):
    """`UNJUDGED` saves a third of the time; a rule that comes to need one of them must take it off the list."""

    class Asked(dict):
        names: set[str] = set()  # noqa: RUF012

        def get(self, name, default=None):
            self.names.add(name)
            return super().get(name, default)

        def __getitem__(self, name):
            self.names.add(name)
            return super().__getitem__(name)

    records = [r for run in table.load(table.DATA) for r in run.records]
    for file in sorted((table.DATA / "causes").glob("*.csv")):
        with open(file, newline="") as handle:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
        records += [StepRecord(int(row.pop("step")), row) for row in rows]
    monitor = Monitor()
    reset = monitor._reset

    def watched():
        reset()
        monitor.series = Asked()

    monitor._reset = watched
    watched()
    for record in records:
        if monitor.last_step is not None and record.step <= monitor.last_step:
            watched()
        monitor.observe(record)
    assert len(Asked.names) > 20 and not Asked.names & UNJUDGED and SIGNALS.keys() >= UNJUDGED
    assert not set(monitor.series) & UNJUDGED


def test_a_rule_of_ones_own_has_every_signal():
    class Mine:
        name = "mine"

        def __call__(self, view):
            assert view.get("lr") is not None

    monitor = Monitor(rules=[*default_rules(), Mine()])
    monitor.observe(StepRecord(0, {"reward": 0.5, "lr": 1e-4}))
    assert "lr" in monitor.series


def test_the_table_of_other_peoples_runs_counts_by_responses_and_leaves_authors_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import real_table

    labels, rng = {}, random.Random(0)
    for name, kind, fell, responses in (
        ("a-1", "healthy", None, 64),
        ("a-2", "fell", 40, 64),
        ("b-1", "healthy", None, 4),
    ):
        level = lambda s, f=fell: 0.6 if f is None or s < f else 0.05  # noqa: E731
        rows = [{"step": s, "critic/score/mean": level(s) + 0.01 * rng.gauss(0, 1)} for s in range(70)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        labels[name] = {"kind": kind, "fell_row": fell, "responses_per_row": responses, "trainer": "verl"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    runs = real_table.load(tmp_path, tmp_path / "labels.json")
    assert [r.author for r in runs] == ["a / verl", "a / verl", "b / verl"] and [r.many for r in runs] == [
        True,
        True,
        False,
    ]
    judged = {r.name: real_table.judge(r, real_table.Thresholds()) for r in runs}
    assert judged["a-1"] == judged["b-1"] == (None, None) and 40 <= judged["a-2"][0] <= judged["a-2"][1] <= 44
    first, second, *_ = real_table.lines(runs, judged)
    assert "critical at most 4 rows after 1; healthy warned 0, critical 0 of 1" in first and "0 of 1" in second
    monkeypatch.setattr(real_table, "GRID", {"decline_z": (3.5, 9.0), "collapse_lost": (0.45, 0.99)})
    chosen, without = real_table.leave_one_author_out(runs)
    assert chosen["b / verl"] == {"decline_z": 3.5, "collapse_lost": 0.45}  # chosen on a's fall
    assert set(without) == set(labels)
