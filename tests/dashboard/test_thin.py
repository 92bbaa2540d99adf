"""What is left out of a long run hides nothing: extremes and steps that were not finite."""

import json
import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentrl.dashboard.history as H
from agentrl.dashboard.history import History
from agentrl.dashboard.library import Library
from agentrl.dashboard.thin import choose, thin

PEAKS = {"grad_norm": (1234, 1e6), "reward": (3333, -7.0), "entropy": (2, 55.0)}
BROKEN = (777, 4100)


def long_run(n=6000):
    rng = random.Random(1)
    out = []
    for step in range(n):
        row = {
            "step": step,
            "time": 1e9 + step,
            "reward": rng.random(),
            "entropy": rng.random(),
            "grad_norm": rng.random(),
        }
        row |= {name: value for name, (at, value) in PEAKS.items() if at == step}
        if step in BROKEN:
            row |= {"grad_norm": None, "nonfinite": ["grad_norm"]}
        out.append(row)
    return out


ROWS = long_run()


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(params=["pyarrow", "json"])
def reader(request, monkeypatch):
    """With the library that is faster, and without it."""
    if request.param == "json":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    else:
        pytest.importorskip("pyarrow")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(H, "WHOLE", 100_000)
    monkeypatch.setattr(H, "TAIL", 20_000)
    monkeypatch.setattr(H, "SAMPLES", 100)
    monkeypatch.setattr(H, "STRETCHES", 10)
    monkeypatch.setattr(H, "BUDGET_S", 60.0)  # the machine may be busy


def test_the_extremes_of_every_signal_and_what_was_not_finite_stay(tmp_path, reader, small):
    (tmp_path / "metrics.jsonl").write_text(text(ROWS))
    history = History(tmp_path)
    history.refresh()
    kept = {row["step"]: row for row in history.rows}
    assert len(kept) < len(ROWS) / 4
    for name, (at, value) in PEAKS.items():
        assert kept[at][name] == value
    for name in ("reward", "entropy", "grad_norm"):  # of each stretch, so of the whole
        values = [(row[name], row["step"]) for row in ROWS if row[name] is not None]
        assert min(values)[1] in kept and max(values)[1] in kept
    assert history.nonfinite() == {"grad_norm": list(BROKEN)}
    assert all(step in kept for step in (0, 1, 2, 3, 4, *BROKEN)) and history.unseen_bytes == 0


def test_several_spikes_of_one_stretch_stay():
    rows = [{"step": i, "grad_norm": 1.0 + i % 7 / 10, "flat": 1.0} for i in range(400)]
    spikes = {30: 50.0, 31: 1e6, 200: -40.0, 399: 60.0}
    for at, value in spikes.items():
        rows[at]["grad_norm"] = value
    spans, _ = choose(text(rows).encode(), even=10)
    kept = {json.loads(text(rows)[a:b])["step"] for a, b in spans}
    assert set(spikes) <= kept and len(kept) < 20


def test_a_run_that_is_never_finite_stays_small_and_counts_every_step(tmp_path, reader, small):
    rows = [row | {"grad_norm": None, "nonfinite": ["grad_norm"]} for row in ROWS]
    (tmp_path / "metrics.jsonl").write_text(text(rows))
    history = History(tmp_path)
    history.refresh()
    assert len(history.rows) < len(rows) / 2 and history.nonfinite() == {"grad_norm": list(range(len(rows)))}


def test_torn_lines_and_odd_values_cost_nothing_else(tmp_path, reader, small):
    lines = text(ROWS).splitlines(keepends=True)
    lines[500] = '{"step": 500, "rew\n'
    lines[900] = '{"step": 900, "reward": "high", "grad_norm": true, "entropy": [1]}\n'
    lines[1500] = "\n"
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    history = History(tmp_path)
    history.refresh()
    kept = {row["step"]: row for row in history.rows}
    assert all(kept[at][name] == value for name, (at, value) in PEAKS.items()) and 500 not in kept


def test_what_takes_too_long_goes_on_and_the_page_is_told(tmp_path, reader, small, monkeypatch):
    monkeypatch.setattr(H, "BUDGET_S", 0.0)
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(text(ROWS))
    history = History(tmp_path)
    history.refresh()
    first = history.cursor
    assert history.unseen_bytes and [r["step"] for r in history.rows] == sorted({r["step"] for r in history.rows})
    said = Library(tmp_path.parent).problems(tmp_path.name, history, False)
    assert any("looked at so far" in line for line in said)
    monkeypatch.setattr(H, "BUDGET_S", 10.0)
    history.refresh()
    assert history.unseen_bytes == 0 and history.since(first) is None  # everything again
    assert history.since(history.cursor) == []
    assert {at for at, _ in PEAKS.values()} <= {r["step"] for r in history.rows}


def test_a_resume_inside_a_long_run_replaces_its_steps(tmp_path, reader, small):
    again = [row | {"reward": 2.0} for row in ROWS[2000:]]
    (tmp_path / "metrics.jsonl").write_text(text([*ROWS[:4000], *again]))
    history = History(tmp_path)
    history.refresh()
    steps = [row["step"] for row in history.rows]
    assert steps == sorted(set(steps))
    assert {row["reward"] for row in history.rows if row["step"] >= 2000} == {2.0}


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=300))
def test_the_report_keeps_the_extremes(values):
    rows = [{"step": i, "x": v} for i, v in enumerate(values)]
    kept = thin(rows, ["x"], 20)
    steps = [row["step"] for row in kept]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == len(rows) - 1 and len(kept) <= 30
    there = [v for v in values if v is not None]
    if there:
        shown = [row["x"] for row in kept if row["x"] is not None]
        assert min(shown) == min(there) and max(shown) == max(there)


def test_choose_on_hand_written_lines():
    lines = [{"step": i, "a": a} for i, a in enumerate((3.0, 9.0, 1.0, 3.0, 3.0, 3.0))]
    lines[4] |= {"a": None, "nonfinite": ["a"]}
    block = text(lines).encode()
    spans, bad = choose(block, even=1)
    assert [json.loads(block[a:b])["step"] for a, b in spans] == [0, 1, 2, 4] and bad == {"a": [4]}
    assert choose(b"", even=1) == ([], {}) and math.isfinite(1.0)
