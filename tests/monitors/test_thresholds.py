"""One tree: every threshold can be set by name, and the rules read it there."""

import math

import pytest
from pydantic import ValidationError

from agentrl.config import MonitorsConfig, RunConfig
from agentrl.errors import AgentRLError
from agentrl.monitors import Monitor, Thresholds
from agentrl.monitors.thresholds import CollapseThresholds, SpiralThresholds, parse
from tests.monitors.runs import records


def test_every_threshold_has_a_reason_and_a_dotted_name():
    items = list(Thresholds().items())
    assert len(items) > 50
    for name, value, doc in items:
        assert len(doc) > 5 and math.isfinite(value)
        new = Thresholds().changed({name: value + 1})
        assert dict((n, v) for n, v, _ in new.items())[name] == value + 1


def test_a_name_that_only_one_part_has_needs_no_dot():
    assert Thresholds().changed({"clip_share": 0.05}).collapse.clip_share == 0.05
    nested = Thresholds().changed({"collapse": {"clip_share": 0.1}, "death_spiral.window": 8.0})
    assert nested.collapse.clip_share == 0.1 and nested.death_spiral.window == 8
    assert isinstance(nested.death_spiral.window, int)
    assert Thresholds().changed({}) == Thresholds()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"clip_shar": 1}, "did you mean 'clip_share'"),
        ({"collapse.clip_shar": 1}, "did you mean 'collapse.clip_share'"),
        ({"collapse": 1}, "no threshold 'collapse'"),
        ({"warmup": 5}, "raising.warmup or phases.warmup"),
        ({"size_span": 2.5}, "whole number, for example 8"),
        ({"size_span": 0}, "1 or more"),
        ({"death_spiral.window": 1}, "2 or more"),
        ({"clip_share": "much"}, "must be a number, for example 0.03"),
        ({"clip_share": True}, "must be a number"),
        ({"clip_share": math.nan}, "must be a number"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest(values, words):
    with pytest.raises(AgentRLError, match=words.replace(".", r"\.")):
        Thresholds().changed(values)
    with pytest.raises(ValidationError, match=words.replace(".", r"\.")):
        MonitorsConfig(thresholds=values)


@pytest.mark.parametrize("pair", ["clip_share", "=1", "clip_share=", "clip_share=high"])
def test_a_pair_of_the_command_line_must_be_one(pair):
    with pytest.raises(AgentRLError, match="expected NAME=NUMBER"):
        parse([pair])


def test_pairs_are_parsed():
    assert parse(["clip_share=0.05", " death_spiral.window = 8"]) == {"clip_share": 0.05, "death_spiral.window": 8.0}


def test_the_config_has_them_too(tmp_path):
    from agentrl.config.files import load_config, to_yaml
    from agentrl.errors import ConfigError

    loaded = load_config("math_tiny", ["monitors.thresholds.clip_share=0.05"]).config
    assert loaded.monitors.limits().collapse.clip_share == 0.05
    (tmp_path / "c.yaml").write_text(to_yaml(loaded))
    assert load_config(tmp_path / "c.yaml").config.monitors == loaded.monitors
    with pytest.raises(ConfigError, match=r"monitors.thresholds: there is no threshold 'clip_shar'; did you mean"):
        load_config("math_tiny", ["monitors.thresholds.clip_shar=0.05"])
    with pytest.raises(ConfigError, match=r"monitors: no such key|monitors.threshold: no such key; did you mean"):
        load_config("math_tiny", ["monitors.threshold.clip_share=0.05"])
    assert RunConfig.model_fields["monitors"].default.limits() == Thresholds()


def alarms(change, thresholds, n=80):
    monitor = Monitor(thresholds)
    return [(a.step, a.rule, a.level) for r in records(n, change) for a in monitor.observe(r)]


def shifted(**later):
    """From step 30 on these values; of a function the value at the step."""

    def change(step, metrics):
        if step >= 30:
            metrics.update({k: v(step) if callable(v) else v for k, v in later.items()})

    return change


#: rule -> (what happens in the run, a threshold that lets it pass).
LET_PASS = {
    "collapse": (lambda s, m: m.update(clip_fraction=0.04, reward=0.5 + 0.01 * (s % 3)), {"clip_share": 0.05}),
    "death_spiral": (shifted(delta_correct=lambda s: -0.01 - 0.001 * (s - 30)), {"epsilon": 1.0}),
    "non_finite": (shifted(loss=math.nan), {"critical_run": 99}),
    "entropy_collapse": (shifted(entropy=0.001), {"low": 0.0}),
    "reward_hacking": (
        lambda s, m: m.update(reward=0.2 + 0.01 * s, correct_rate=0.9 - 0.004 * s),
        {"reward_hacking.rising_z": 1e9},
    ),
    "mismatch": (shifted(mismatch=0.1), {"mismatch.factor": 1e9}),
    "tool_outage": (shifted(tool_errors=9.0), {"tool_outage.factor": 1.0, "tool_outage.run": 99}),
    "invalid_actions": (shifted(valid_action_ratio=0.5), {"invalid_actions.lost": 0.6}),
    "truncation": (shifted(truncated_share=0.6), {"truncation.share": 0.7}),
    "gradient_spike": (shifted(grad_norm=lambda s: 20.0 if s == 40 else 0.5), {"gradient_spike.factor": 99}),
    "no_signal": (lambda s, m: m.update(groups_all_correct=0.95, groups_all_wrong=0.0), {"no_signal.share": 0.99}),
}


@pytest.mark.parametrize("rule", LET_PASS)
def test_each_rule_reads_its_part(rule):
    change, passes = LET_PASS[rule]

    def whole(step, metrics):
        base = {"mismatch": 0.01, "tool_errors": 0.0, "truncated_share": 0.05}
        metrics.update(
            {
                k: v
                for k, v in base.items()
                if rule == ("tool_outage" if k == "tool_errors" else k)
                or (rule == "truncation" and k == "truncated_share")
            }
        )
        change(step, metrics)

    shipped = [a for a in alarms(whole, Thresholds()) if a[1] == rule]
    let_pass = [a for a in alarms(whole, Thresholds().changed(passes)) if a[1] == rule]
    assert shipped and let_pass != shipped
    if rule == "non_finite":
        assert {a[2] for a in shipped} == {"warn", "critical"} and {a[2] for a in let_pass} == {"warn"}
    else:
        assert let_pass == []


def test_the_raising_part_and_the_phases_are_read_too():
    change = LET_PASS["collapse"][0]
    first = next(a for a in alarms(change, Thresholds()) if a[1] == "collapse")
    held = next(a for a in alarms(change, Thresholds().changed({"raising.hold": 6})) if a[1] == "collapse")
    assert held[0] == first[0] + 3
    fast = Monitor(Thresholds().changed({"phases.collapsed": 0.1, "phases.hold": 1}))
    slow = Monitor()
    for record in records(60, shifted(reward=0.35)):
        fast.observe(record)
        slow.observe(record)
    assert fast.phase.phase == "III" != slow.phase.phase


def test_the_tree_is_frozen():
    shipped = Thresholds()
    with pytest.raises(AttributeError, match="do not change"):
        shipped.collapse.clip_share = 1.0
    with pytest.raises(AttributeError):
        shipped.collapse = CollapseThresholds()
    assert shipped == Thresholds()


def test_a_part_is_its_values():
    other = CollapseThresholds(clip_share=0.5)
    assert other != CollapseThresholds() and other == CollapseThresholds(clip_share=0.5) and other != SpiralThresholds()
    assert hash(other) == hash(CollapseThresholds(clip_share=0.5)) and "clip_share=0.5" in repr(other)
    assert CollapseThresholds.clip_share == 0.03 and other.clip_share_loss == CollapseThresholds().clip_share_loss
    with pytest.raises(TypeError, match="has no clip"):
        CollapseThresholds(clip=1)
