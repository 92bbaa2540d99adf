"""Ills of the first row: named after one step, a warning when they stay, silent once they are over."""

import pytest

from agentrl.monitors import Monitor
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.starts import Ill
from tests.monitors.runs import records

#: rule -> what the rows show.
ILLS = {
    "cut_from_start": {"truncated_share": 0.8},
    "equal_from_start": {"groups_equal": 1.0},
    "no_reward": {"reward": 0.0},
    "no_answer": {"answered_share": 0.0},
    "no_valid_action": {"valid_action_ratio": 0.0},
    "no_entropy": {"entropy": 0.001},
    "no_gradient": {"grad_norm": 0.0},
    "no_learning_rate": {"lr": 0.0},
}


def test_every_ill_is_tried_here():
    assert {r.name for r in default_rules() if isinstance(r, Ill)} == set(ILLS)


@pytest.mark.parametrize("rule", ILLS)
def test_an_ill_is_named_after_one_step_and_warned_of_when_it_stays(rule):
    def found(change, n=12):
        monitor = Monitor()
        return [(a.step, a.level) for r in records(n, change) for a in monitor.observe(r) if a.rule == rule]

    assert found(lambda s, m: m.update(ILLS[rule])) == [(0, "info"), (4, "warn")]
    assert found(lambda s, m: m.update(ILLS[rule] if s == 0 else {name: 0.3 for name in ILLS[rule]})) == [
        (0, "info")
    ]  # over with the second row
    fine = {name: 0.3 for name in ILLS[rule]}
    assert found(lambda s, m: m.update(ILLS[rule] if s > 0 else fine)) == []  # it was not there from the start


def test_groups_of_both_kinds_of_equal_rewards_count_together():
    monitor = Monitor()
    change = {"groups_all_correct": 0.5, "groups_all_wrong": 0.5}
    found = [a.rule for r in records(1, lambda s, m: m.update(change)) for a in monitor.observe(r)]
    assert "equal_from_start" in found


@pytest.mark.parametrize("name", ["cut_share", "truncated_share"])
def test_cut_at_any_limit_counts_from_the_start(name):
    """`cut_share` is agentrl's own, of `rollout.max_tokens_per_turn`: such an episode may end in other ways."""
    monitor = Monitor()
    change = {"cut_share": 0.0, "truncated_share": 0.0, name: 0.8}
    found = [(a.rule, a.level) for r in records(6, lambda s, m: m.update(change)) for a in monitor.observe(r)]
    assert [level for rule, level in found if rule == "cut_from_start"] == ["info", "warn"]


def test_a_constant_reward_is_one_that_never_changes():
    def levels(change):
        monitor = Monitor()
        return [a.level for r in records(8, change) for a in monitor.observe(r) if a.rule == "no_reward"]

    assert levels(lambda s, m: m.update(reward=0.5, reward_group_std=0.0)) == ["info", "warn"]
    assert levels(lambda s, m: m.update(reward=0.5, reward_group_std=0.2)) == []
    assert levels(lambda s, m: m.update(reward=0.5)) == ["warn"]  # one row of it says nothing
    assert levels(lambda s, m: m.update(reward=0.5 if s != 3 else 0.6)) == []


def test_two_hundred_steps_of_zero_reward_do_not_pass_without_a_word():
    monitor = Monitor()
    found = [a for r in records(200, lambda s, m: m.update(reward=0.0)) for a in monitor.observe(r)]
    assert "warn" in {a.level for a in found if a.rule == "no_reward"}
    assert not [a for a in found if a.rule == "collapse" and a.level == "critical"]  # broken is not collapsed
