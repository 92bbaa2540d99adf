import math

import pytest

from agentrl.monitors import Monitor
from agentrl.monitors.collapse import EVIDENCE, Collapse
from tests.monitors.runs import records


def alarms(change, n=80, only=EVIDENCE, seed=0):
    monitor = Monitor(rules=[Collapse(only)])
    return [a for r in records(n, change, seed) for a in monitor.observe(r)]


def stagnant(_step, metrics, clip=0.06):
    metrics["reward"] = 0.5 + 0.02 * ((metrics["reward"] * 1000) % 1 - 0.5)
    metrics["clip_fraction"] = clip


def test_the_first_steps_must_be_twice_as_large():
    def moderate(until):
        def change(step, metrics):
            metrics["clip_fraction"] = 0.04 if step < until else 0.005
            metrics["reward"] = 0.5 + 0.01 * (step % 3)

        return change

    assert alarms(moderate(10)) == []  # the optimiser's first steps, which settle
    assert [a.step for a in alarms(moderate(99))] == [16]  # the fifteenth record and the two after it


def test_large_updates_that_do_not_pay_are_warned_of_at_the_end_of_the_warm_up():
    found = alarms(stagnant)
    assert [(a.step, a.level) for a in found] == [(9, "warn")]
    assert found[0].signals["clip_fraction"] == {"value": pytest.approx(0.06), "threshold": 0.06}
    assert "algorithm.loss.llds.enabled=true" in found[0].remedy


def test_large_updates_that_pay_are_fine():
    def change(step, metrics):
        metrics["clip_fraction"] = 0.06
        metrics["reward"] = 0.02 * step + 0.001 * (step % 3)

    assert alarms(change, n=45) == []


def test_delta_stands_in_for_a_missing_clip_fraction():
    def change(step, metrics):
        stagnant(step, metrics)
        del metrics["clip_fraction"]
        metrics["delta_correct"] = 0.05 if step % 2 else -0.04

    found = alarms(change)
    assert found[0].level == "warn" and "nats per token" in found[0].message


def test_nothing_is_said_of_update_size_without_a_reward():
    def change(step, metrics):
        stagnant(step, metrics)
        del metrics["reward"]

    assert alarms(change, only=("large_updates",)) == []


def test_degradation_combines_entropy_reward_and_likelihood():
    def change(step, metrics):
        if step > 50:
            metrics["entropy"] *= 1.05 ** (step - 50)
            metrics["logprob_correct"] *= 1.05 ** (step - 50)
            metrics["reward"] -= 0.02 * (step - 50)

    found = alarms(change, n=75, only=("degradation",))
    assert found and 52 < found[0].step < 70
    assert found[0].signals["degradation_z"]["value"] >= 4.5
    assert "entropy" in found[0].message or "reward" in found[0].message


def test_one_signal_alone_does_not_make_a_degradation():
    def change(step, metrics):
        if step > 50:
            metrics["entropy"] *= 3

    assert alarms(change, only=("degradation",)) == []


def test_a_significant_but_tiny_change_is_not_a_degradation():
    """Large batches have little noise: two percent is many standard errors and means nothing."""

    def change(step, metrics):
        metrics.update(reward=0.5, entropy=0.3, logprob_correct=-0.2)
        if step > 50:
            metrics.update(reward=0.48, entropy=0.34, logprob_correct=-0.23)

    assert alarms(change) == []


def unsure(step, metrics):
    """Entropy steps up by a half after a while and the reward gives way a little; no sign of large updates."""
    metrics["reward"] = 0.5 + 0.01 * (step % 3) - (0.13 if step >= 20 else 0.0)
    metrics["entropy"] = (0.4 if step < 20 else 0.6) * (1 + 0.01 * (step % 2))


def test_entropy_above_its_start_is_warned_of_once_a_part_of_the_reward_is_gone():
    found = alarms(unsure, n=60, only=("entropy_rise",))
    assert [a.level for a in found] == ["warn"] and 20 < found[0].step < 35
    assert found[0].signals["entropy"]["threshold"] == pytest.approx(0.4, rel=0.02)
    assert found[0].signals["entropy_cusum"]["value"] > found[0].signals["entropy_cusum"]["threshold"]

    def learning(step, metrics):
        unsure(step, metrics)
        metrics["reward"] = 0.2 + 0.01 * step

    assert alarms(learning, n=60, only=("entropy_rise",)) == []

    def holding(step, metrics):
        """Common in healthy runs of other trainers."""
        unsure(step, metrics)
        metrics["reward"] = 0.5 + 0.01 * (step % 3)

    assert alarms(holding, n=60, only=("entropy_rise",)) == []


def test_the_sum_is_that_of_its_formula():
    """Against the sum written out, with the series' own noise."""
    rule, monitor = Collapse(("entropy_rise",)), Monitor()
    monitor.rules, monitor._status, monitor._memory = [rule], {"collapse": {}}, {"collapse": {}}
    total = 0.0
    for record in records(40, unsure):
        monitor.observe(record)
        series = monitor.series["entropy"]
        if series.first is not None:
            above = math.log(record.metrics["entropy"] / series.first) / series.noise(0.05)
            total = min(max(0.0, total + above - 0.25), 12.0)
        assert monitor._memory["collapse"].get("entropy_sum", 0.0) == pytest.approx(total)
    assert total == 12.0


def test_what_was_never_earned_cannot_be_lost():
    """One lucky episode in a run that knows nothing is no peak to fall from."""

    def change(step, metrics):
        stagnant(step, metrics)
        metrics["reward"] = 0.03 if step == 12 else 0.0

    assert "critical" not in [a.level for a in alarms(change)]


def test_death_spiral_is_evidence():
    def change(step, metrics):
        if step > 40:
            metrics["delta_correct"] = -0.01 - 0.001 * (step - 40)

    found = alarms(change)
    assert found[0].level == "warn" and "death spiral" in found[0].message


def test_it_becomes_critical_when_the_reward_goes():
    def change(step, metrics):
        stagnant(step, metrics)
        if step > 40:
            metrics["reward"] *= 0.94 ** (step - 40)

    found = alarms(change)
    assert [a.level for a in found] == ["warn", "critical"]
    assert 45 < found[1].step < 60
    assert found[1].signals["reward_lost"]["value"] >= 0.4
    assert found[1].remedy.startswith("Stop and go back to the last checkpoint")


def test_a_fall_is_noticed_from_the_reward_alone():
    def change(step, metrics):
        reward = metrics["reward"] if step < 60 else 0.1
        metrics.clear()
        metrics["reward"] = reward

    found = alarms(change)
    assert found and found[0].step < 68


def test_the_remedy_names_the_learning_rate_in_use():
    def change(step, metrics):
        stagnant(step, metrics)
        metrics["lr"] = 7e-4

    assert "optim.lr=0.00035 (now 0.0007)" in alarms(change)[0].remedy


def test_no_critical_alarm_without_significance():
    """Half of the peak is gone in the mean of eight, but so it is all the time; steady rows of the same level fall."""

    def noisy(step, metrics):
        metrics.clear()
        metrics["reward"] = 0.5 + (0.45 if step * 7 % 11 < 5 else -0.45) * (1 if step % 2 else 0.6)
        if step >= 60:
            metrics["reward"] = 0.6 if step * 5 % 7 == 0 else 0.05

    assert "critical" not in [a.level for a in alarms(noisy, n=68)]

    def steady(step, metrics):
        metrics.clear()
        metrics["reward"] = (0.5 if step < 60 else 0.13) + 0.01 * (step % 3)

    assert "critical" in [a.level for a in alarms(steady, n=68)]


def test_a_reward_decline_within_its_noise_is_none():
    """Over a third of the peak mean is gone, but so it goes up and down all the time."""

    def noisy(step, metrics):
        level = 0.5 if step < 40 else 0.3
        metrics.clear()
        metrics["reward"] = level + (0.45 if (step * 7) % 3 == 0 else -0.2)

    found = alarms(noisy, only=("reward_decline",))
    assert found == []

    def steady(step, metrics):
        metrics.clear()
        metrics["reward"] = (0.5 if step < 40 else 0.3) + 0.01 * (step % 3)

    assert [a.level for a in alarms(steady, only=("reward_decline",))][:1] == ["warn"]
