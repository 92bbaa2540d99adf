import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import AgentRLError
from agentrl.monitors import Monitor, StepRecord
from agentrl.monitors.alarms import default_rules, page, responsible
from agentrl.monitors.view import Finding, View
from tests.monitors.runs import records


class Scripted:
    """Fires at the given steps: {step: level}."""

    name = "scripted"

    def __init__(self, levels, immediate=False):
        self.levels, self.immediate = levels, immediate

    def __call__(self, view: View):
        level = self.levels.get(view.record.step)
        return level and Finding(level, "m", {"x": (1.0, 2.0)}, "Do it.", immediate=self.immediate)


def fired(levels, n=80, immediate=False, thresholds=None):
    monitor = Monitor(thresholds, rules=[Scripted(levels, immediate)])
    return [(a.step, a.level) for r in records(n) for a in monitor.observe(r)]


def test_a_trend_alarm_needs_three_steps_in_a_row_and_is_raised_once():
    assert fired({s: "warn" for s in range(20, 30)}) == [(22, "warn")]
    assert fired({20: "warn", 21: "warn", 23: "warn", 24: "warn"}) == []


def test_nothing_is_raised_during_the_warm_up_but_what_is_immediate():
    assert fired({s: "warn" for s in range(30)}) == [(9, "warn")]
    assert fired({2: "critical"}, immediate=True) == [(2, "critical")]


def test_an_alarm_is_raised_again_only_when_it_gets_worse():
    levels = {s: "warn" for s in range(20, 30)} | {s: "critical" for s in range(30, 40)}
    assert fired(levels) == [(22, "warn"), (30, "critical")]
    assert fired({s: "critical" for s in range(20, 25)} | {s: "warn" for s in range(25, 60)}) == [(22, "critical")]


def test_hysteresis_and_cooldown():
    gap = {s: "warn" for s in range(20, 30)} | {s: "warn" for s in range(36, 45)}
    assert fired(gap) == [(22, "warn")]  # five quiet steps do not end it
    back = {s: "warn" for s in range(15, 20)} | {s: "warn" for s in range(34, 70)}
    assert fired(back) == [(17, "warn"), (49, "warn")]  # ended at 29, may come back 20 steps later
    worse = {s: "warn" for s in range(15, 20)} | {s: "critical" for s in range(34, 40)}
    assert fired(worse) == [(17, "warn"), (36, "critical")]  # a worse one at once


def test_alarm_carries_everything():
    monitor = Monitor(rules=[Scripted({12: "warn"}, immediate=True)])
    alarms = [a for r in records(13) for a in monitor.observe(r)]
    assert alarms[0].id == "scripted-000012-warn"
    assert alarms[0].signals == {"x": {"value": 1.0, "threshold": 2.0}}
    assert alarms[0].remedy == "Do it. See docs/alarms.md#scripted."
    assert monitor.active() == {"scripted": "warn"}


def test_sinks_get_every_alarm():
    got = []
    monitor = Monitor(rules=[Scripted({5: "info", 6: "warn"}, immediate=True)], sinks=[got.append])
    returned = [a for r in records(8) for a in monitor.observe(r)]
    assert got == returned and len(got) == 2


def test_healthy_runs_are_quiet():
    for seed in range(5):
        monitor = Monitor()
        loud = [a for r in records(200, seed=seed) for a in monitor.observe(r) if a.level != "info"]
        assert loud == []


def test_missing_values_are_not_zero():
    """Signals that stop or were never there raise nothing."""

    def change(step, metrics):
        if step > 30:
            for name in ("entropy", "logprob_correct", "delta_correct", "clip_fraction"):
                del metrics[name]

    monitor = Monitor()
    assert [a for r in records(120, change) for a in monitor.observe(r)] == []
    assert monitor.series["entropy"].count == 31


def test_a_step_that_goes_back_starts_afresh():
    monitor = Monitor()
    for record in records(40):
        monitor.observe(record)
    monitor.observe(records(1, start=20)[0])
    assert monitor.seen == 1
    assert monitor.phase.phase == "warmup"


def observed(monitor, steps):
    out = []
    for record in steps:
        out.append((monitor.observe(record), monitor.phase, monitor.decay_onset()))
    return out


values = st.one_of(st.floats(-5, 5), st.just(math.nan), st.just(math.inf), st.none())
metric_rows = st.lists(
    st.fixed_dictionaries(
        {k: values for k in ("reward", "entropy", "clip_fraction", "delta_correct", "logprob_correct", "grad_norm")}
    ),
    min_size=2,
    max_size=60,
)


def as_records(rows):
    return [StepRecord(i, {k: v for k, v in row.items() if v is not None}) for i, row in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(metric_rows, st.data())
def test_no_look_ahead_a_prefix_gives_the_same_output(rows, data):
    whole = as_records(rows)
    cut = data.draw(st.integers(1, len(whole)))
    assert repr(observed(Monitor(), whole[:cut])) == repr(observed(Monitor(), whole)[:cut])


@settings(max_examples=60, deadline=None)
@given(metric_rows, st.data())
def test_a_restored_monitor_goes_on_as_the_original(rows, data):
    whole = as_records(rows)
    cut = data.draw(st.integers(0, len(whole)))
    one, two = Monitor(), Monitor()
    observed(one, whole[:cut])
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    assert repr(observed(one, whole[cut:])) == repr(observed(two, whole[cut:]))


def test_prefix_and_restore_on_a_collapsing_run():
    """The same two properties where alarms do occur."""

    def change(step, metrics):
        metrics["clip_fraction"] = 0.08
        if step > 40:
            metrics["reward"] *= 0.93 ** (step - 40)
            metrics["entropy"] *= 1.04 ** (step - 40)

    whole = records(90, change)
    full = observed(Monitor(), whole)
    assert any(alarms for alarms, _, _ in full)
    monitor = Monitor()
    for i, record in enumerate(whole):
        state = json.loads(json.dumps(monitor.state_dict(), allow_nan=False))
        monitor = Monitor()
        monitor.load_state_dict(state)
        assert repr(observed(monitor, [record])[0]) == repr(full[i])


def test_a_state_of_another_version_is_refused():
    with pytest.raises(AgentRLError, match="version 99"):
        Monitor().load_state_dict({"version": 99})


GROUPS = [
    {"group_id": "a", "delta": -0.1, "logprob_correct": -0.5, "reward_mean": 0.5, "sample_ids": ["a0", "a1"]},
    {"group_id": "b", "delta": 0.2, "logprob_correct": -0.1, "reward_mean": 0.9, "sample_ids": ["b0"]},
    {"group_id": "c", "delta": -0.3, "logprob_correct": -0.9, "reward_mean": 0.1, "errors": 4, "sample_ids": ["c0"]},
    {"group_id": "d", "reward_mean": 0.0},
]


def test_the_responsible_groups_are_the_worst_by_the_rules_own_number():
    assert responsible(GROUPS, "delta") == (["c", "a"], ["c0", "a0", "a1"])
    assert responsible(GROUPS, "logprob", top=1) == (["c"], ["c0"])
    assert responsible(GROUPS, "reward", top=2) == (["d", "c"], ["c0"])
    assert responsible(GROUPS, "error") == (["c"], ["c0"])
    assert responsible([], "delta") == ([], [])
    unmeasured = [{k: v for k, v in g.items() if k != "delta"} for g in GROUPS]  # Δ is not scored at every step
    assert responsible(unmeasured, "delta") == responsible(GROUPS, "logprob")
    bare = [{k: v for k, v in g.items() if k not in ("delta", "logprob_correct")} for g in GROUPS]
    assert responsible(bare, "delta") == responsible(bare, "logprob") == responsible(GROUPS, "reward")
    assert responsible([{"group_id": "x", "reward_mean": 0.0}], "error") == ([], [])


def test_every_rule_has_a_page():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text()
    for rule in default_rules():
        assert f'<a id="{page(rule.name).split("#")[1]}"></a>' in text
