import math

import pytest

from agentrl.monitors import Monitor
from agentrl.types import StepRecord
from tests.monitors.runs import records


def alarms(change, n=80, rule=None):
    monitor = Monitor()
    found = [a for r in records(n, change) for a in monitor.observe(r)]
    return [a for a in found if rule is None or a.rule == rule]


def test_nan_warns_at_once_and_is_critical_when_it_stays():
    def change(step, metrics):
        if step in (3, 20, 21, 22):
            metrics["loss"] = math.nan

    found = alarms(change, rule="non_finite")
    assert [(a.step, a.level) for a in found] == [(3, "warn"), (22, "critical")]  # the second warning is too soon
    assert math.isnan(found[0].signals["loss"]["value"])


def test_nan_in_a_number_that_does_not_matter_is_nothing():
    assert alarms(lambda s, m: m.update(tokens_per_s=math.nan)) == []


def test_skipped_updates_are_reported():
    assert alarms(lambda s, m: m.update(skipped_updates=float(s == 30)), rule="non_finite")[0].step == 30


def test_entropy_collapse_warns_only_while_questions_are_unsolved():
    def stuck(step, metrics):
        metrics.update(entropy=0.5 * 0.9**step, groups_all_wrong=0.4)

    def solved(step, metrics):
        metrics.update(entropy=0.5 * 0.9**step, groups_all_wrong=0.0, correct_rate=0.95)

    assert [a.level for a in alarms(stuck, rule="entropy_collapse")] == ["info", "warn"]
    assert [a.level for a in alarms(solved, rule="entropy_collapse")] == ["info"]


def test_reward_that_rises_while_answers_get_worse_is_suspicious():
    def change(step, metrics):
        metrics["reward"] = 0.2 + 0.01 * step
        metrics["correct_rate"] = 0.5 - 0.004 * step

    found = alarms(change, rule="reward_hacking")
    assert found and "correct" in found[0].message


def test_reward_that_rises_while_searching_stops_is_suspicious():
    def change(step, metrics):
        metrics["reward"] = 0.2 + 0.01 * step
        metrics["valid_search_ratio"] = 0.6 if step < 20 else 0.1

    found = alarms(change, rule="reward_hacking")
    assert found and "nothing retrieved" in found[0].message
    assert alarms(lambda s, m: m.update(valid_search_ratio=0.6), rule="reward_hacking") == []


def test_reward_for_something_else_than_answers_is_noted():
    def change(step, metrics):
        metrics["reward"] = 0.2 + 0.006 * step
        metrics["correct_rate"] = 0.1 + 0.01 * (step % 3)

    assert [a.level for a in alarms(change, rule="reward_hacking")] == ["info"]

    def both(step, metrics):
        metrics["reward"] = 0.2 + 0.006 * step
        metrics["correct_rate"] = 0.1 + 0.005 * step

    assert alarms(both, rule="reward_hacking") == []


def test_answers_that_were_not_retrieved_are_suspicious():
    def change(step, metrics):
        metrics["reward"] = 0.2 + 0.01 * step
        metrics["answer_in_retrieved"] = 0.9 if step < 30 else 0.3

    found = alarms(change, rule="reward_hacking")
    assert found and found[0].level == "warn" and found[0].signals["answer_in_retrieved"]["threshold"] == 0.45


def test_the_divergence_stands_in_for_the_difference():
    found = alarms(lambda s, m: m.update(kl_sampler=0.001 * 1.03**s), rule="mismatch")
    assert found and set(found[0].signals) == {"kl_sampler"}
    assert alarms(lambda s, m: m.update(kl_sampler=1e-5 * 1.05**s), rule="mismatch") == []
    both = alarms(lambda s, m: m.update(mismatch=0.02, kl_sampler=0.001 * 1.03**s), rule="mismatch")
    assert both == []


def test_growing_mismatch_warns_and_a_constant_one_does_not():
    found = alarms(lambda s, m: m.update(mismatch=0.01 * 1.03**s), rule="mismatch")
    assert found and found[0].level == "warn"
    assert alarms(lambda s, m: m.update(mismatch=0.05 + 0.002 * (s % 3)), rule="mismatch") == []
    assert alarms(lambda s, m: m.update(mismatch=1e-5 * 1.05**s), rule="mismatch") == []  # still nothing


def test_tool_outage_needs_three_bad_steps():
    def change(step, metrics):
        metrics["failed_rollouts"] = 8.0 if step in (5, 20, 30, 31, 32, 33) else 0.0

    found = alarms(change, rule="tool_outage")
    assert [(a.step, a.level) for a in found] == [(32, "warn")]


@pytest.mark.parametrize(
    "failing, at",
    [(lambda s: 0.02 if s < 20 else 0.9, 22), (lambda s: 0.3, None), (lambda s: 0.02 if s != 20 else 1.0, None)],
)
def test_calls_that_raise_are_an_outage_though_no_episode_fails(failing, at):
    found = alarms(lambda s, m: m.update(call_failures=failing(s)), rule="tool_outage")
    assert [(a.step, a.level) for a in found] == ([] if at is None else [(at, "warn")])
    assert all("90% of the tool calls" in a.message for a in found)


def test_a_step_without_any_episode_left_is_critical():
    monitor = Monitor()
    for record in records(5):
        monitor.observe(record)
    groups = [{"group_id": "q7", "errors": 8, "sample_ids": ["q7-0"]}]
    found = monitor.observe(StepRecord(5, {"failed_rollouts": 64.0}, groups))
    assert [(a.rule, a.level, a.groups, a.rollouts) for a in found] == [("tool_outage", "critical", ["q7"], ["q7-0"])]


def test_slow_tools_are_mentioned():
    found = alarms(lambda s, m: m.update(tool_latency_s=0.3 if s < 20 else 4.0), rule="tool_outage")
    assert found[0].level == "info"


def test_forgetting_the_protocol_warns():
    found = alarms(lambda s, m: m.update(valid_action_ratio=0.99 if s < 30 else 0.6), rule="invalid_actions")
    assert found and 30 < found[0].step < 40


def test_truncation_warns():
    def change(step, metrics):
        metrics["truncated_share"] = 0.05 if step < 30 else 0.6
        metrics["reward"] = (0.5 if step < 40 else 0.3) + 0.01 * (step % 3)

    found = alarms(change, rule="truncation")
    assert [a.level for a in found] == ["info", "warn"] and found[0].step == 32  # three rows; the reward goes later
    assert found[0].signals["truncated_share"] == {"value": 0.6, "threshold": 0.5}
    assert alarms(lambda s, m: m.update(truncated_share=0.3), rule="truncation") == []  # it was so from the start
    holds = alarms(lambda s, m: m.update(truncated_share=0.05 if s < 30 else 1.0), rule="truncation")
    assert [a.level for a in holds] == ["info"]  # cut, and yet rewarded
    high = alarms(lambda s, m: m.update(truncated_share=0.4 if s < 30 else 0.7), rule="truncation")
    assert high and high[0].signals["truncated_share"]["threshold"] == 0.65  # absolute: it can fire above a half, too


def test_responses_that_end_at_the_token_limit_name_it():
    found = alarms(lambda s, m: m.update(cut_share=0.05 if s < 30 else 0.5), rule="truncation")
    assert found and found[0].remedy.startswith("Raise rollout.max_tokens_per_turn (and")
    always = alarms(lambda s, m: m.update(cut_share=1.0), rule="truncation")
    assert always and "100% of the responses are cut at rollout.max_tokens_per_turn" in always[0].message


def test_no_signal_is_judged_by_the_spread_of_rewards():
    """Rewards that vary below the threshold are a signal for GRPO, however few are correct."""
    wrong = {"groups_all_correct": 0.0, "groups_all_wrong": 1.0}
    assert alarms(lambda s, m: m.update(**wrong, groups_equal=0.1), rule="no_signal") == []
    found = alarms(lambda s, m: m.update(**wrong, groups_equal=0.95), rule="no_signal")
    assert [a.level for a in found] == ["info"] and "95% of the groups have equal rewards" in found[0].message
    cut = alarms(lambda s, m: m.update(**wrong, groups_equal=0.95, cut_share=1.0), rule="no_signal")
    assert cut[0].remedy.startswith("Raise rollout.max_tokens_per_turn first: 100%")


def test_rewards_that_never_make_a_response_correct_warn():
    found = alarms(lambda s, m: m.update(groups_out_of_reach=1.0, groups_equal=0.0), rule="no_signal")
    assert [a.level for a in found] == ["warn"] and "algorithm.correct_threshold" in found[0].remedy
    assert alarms(lambda s, m: m.update(groups_out_of_reach=0.2, groups_equal=0.0), rule="no_signal") == []


def test_a_gradient_spike_is_only_information():
    found = alarms(lambda s, m: m.update(grad_norm=20.0 if s == 40 else 0.5), rule="gradient_spike")
    assert [(a.step, a.level) for a in found] == [(40, "info")]


def test_groups_without_a_signal_are_mentioned():
    found = alarms(lambda s, m: m.update(groups_all_correct=0.7, groups_all_wrong=0.25), rule="no_signal")
    assert [a.level for a in found] == ["info"]
    assert "dynamic_sampling=true" in found[0].remedy


def test_death_spiral_names_its_questions():
    def change(step, metrics):
        if step > 30:
            metrics["delta_correct"] = -0.01 - 0.001 * (step - 30)

    monitor = Monitor()
    found = []
    for record in records(60, change):
        record.groups = [{"group_id": "g1", "delta": -0.4, "sample_ids": ["s1"]}, {"group_id": "g2", "delta": 0.1}]
        found += [a for a in monitor.observe(record) if a.rule == "death_spiral"]
    assert found[0].groups == ["g1"] and found[0].rollouts == ["s1"]
