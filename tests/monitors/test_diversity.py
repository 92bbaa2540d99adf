"""Responses that lose their difference, control tokens, a data set that drops to 0, and nothing answered."""

import random

import pytest

from agentrl.monitors import Monitor, StepRecord
from agentrl.monitors.signals import guess_mapping


def watched(signals, n=60, seed=0):
    """Alarms of a run whose signals are functions of the step, with 2 % noise."""
    rng, monitor, found = random.Random(seed), Monitor(), []
    for step in range(n):
        values = {k: f(step) * (1 + 0.02 * rng.gauss(0, 1)) for k, f in signals.items()}
        found += monitor.observe(StepRecord(step, {"reward": 0.5 + 0.01 * (step % 3), **values}))
    return found


def falling(start, end):
    return lambda step: start if step < 30 else max(end, start - (start - end) * (step - 30) / 10)


def test_responses_that_depend_less_and_less_on_the_question_are_named():
    found = [a for a in watched({"question_information": falling(1.2, 0.3)}) if a.rule == "template_collapse"]
    assert len(found) == 1 and found[0].level == "warn" and 35 <= found[0].step <= 45
    assert found[0].story == "template collapse"
    assert watched({"question_information": falling(1.2, 0.8)}) == []  # a third less is learning
    assert watched({"question_information": lambda s: 1.2}) == []


def test_alike_responses_are_a_warning_only_while_questions_are_unsolved():
    for correct, level in ((0.3, "warn"), (0.95, "info")):
        found = watched({"diversity_within": falling(0.6, 0.05), "correct_rate": lambda s, c=correct: c})
        assert [a.level for a in found if a.rule == "same_responses"] == [level]
    assert watched({"diversity_within": falling(0.6, 0.3)}) == []


def test_control_tokens_must_jump_and_stay():
    jump = watched({"control_tokens": lambda s: 0.001 if s < 40 else 0.05})
    assert [(a.rule, a.step) for a in jump] == [("control_tokens", 41)]
    assert watched({"control_tokens": lambda s: 0.05 if s == 40 else 0.001}) == []  # one row
    assert watched({"control_tokens": lambda s: 0.05}) == []  # a template that has them from the start


def test_a_data_set_at_zero_is_named_where_the_mean_hides_it():
    mapping = guess_mapping([f"val-core/{n}/reward/mean@1" for n in "abcd"])

    def run(lost, n=90):
        monitor, found = Monitor(), []
        for step in range(n):
            row = {}
            if step % 10 == 0:
                row = {f"val-core/{n}/reward/mean@1": 0.4 for n in "abc"} | {"val-core/d/reward/mean@1": 0.0}
                row |= dict.fromkeys([k for k in row if k.split("/")[1] in lost(step)], 0.0)
            found += monitor.observe(StepRecord(step, {"reward": 0.5 + 0.01 * (step % 3), **mapping.apply(row)}))
        return [(a.rule, a.step, a.story) for a in found]

    found = run(lambda step: "b" if step >= 60 else "")
    assert ("source_lost", 70, "tool or data changed") in found  # the mean fell by a third, which is named too
    assert run(lambda step: "b" if step == 60 else "") == []  # once, in a small data set
    assert run(lambda step: "") == []  # d is hard: near 0 from the start


def test_nothing_answered_is_an_ill_of_the_first_row():
    found = watched({"answered_share": lambda s: 0.0}, n=8)
    assert [(a.rule, a.level, a.step) for a in found] == [("no_answer", "info", 0), ("no_answer", "warn", 4)]
    assert watched({"answered_share": lambda s: 0.2}, n=8) == []
    assert guess_mapping(["env/finish_ratio"]).columns["answered_share"] == "env/finish_ratio"  # Search-R1's


@pytest.mark.parametrize("column", ["collapse_first_turn_sample/mi_estimate", "collapse_trajectory_sample/mi_estimate"])
def test_ragen_measures_the_mutual_information_itself(column):
    assert guess_mapping(["critic/score/mean", column]).columns["question_information"] == column


def test_rllm_names_its_reward_after_the_agent():
    mapping = guess_mapping(["reward/solver/mean", "reward/solver/max", "reward/judge/mean", "batch/solve_all"])
    assert mapping.apply({"reward/solver/mean": 0.2, "reward/judge/mean": 0.6})["reward"] == pytest.approx(0.4)
