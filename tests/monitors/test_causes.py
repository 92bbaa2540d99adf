"""Stories: which cause is named, that the guard keeps its hands off a dead tool, and remedies."""

import pytest

from agentrl.config import GuardConfig
from agentrl.monitors import Monitor, StepRecord
from agentrl.monitors.causes import ACTING
from agentrl.monitors.stop_rule import Guard
from tests.monitors.runs import records

OUTAGE = 60


def outage(step, metrics):
    """What a search agent shows whose retriever dies: like a public run of verl, in numbers of one's own."""
    dead = step >= OUTAGE
    metrics.clear()
    metrics.update(
        reward=(0.06 if dead else 0.32) + 0.01 * (step % 3),
        entropy=0.05 + 0.004 * (step % 2) + (0.012 if dead else 0.0),
        kl=0.05 + 0.002 * (step % 3),
        clip_fraction=0.0002,
        response_length=(148.0 if dead else 385.0) + 4 * (step % 4),
        turns=4.0 - 0.01 * (step % 2),
        t_rollout_s=(14.0 if dead else 4.6) + 0.3 * (step % 2),
        grad_norm=0.3,
    )


def watched(change, n=90, trainer=None):
    monitor = Monitor()
    monitor.trainer = trainer
    return monitor, [a for r in records(n, change) for a in monitor.observe(r)]


def test_a_dead_tool_is_named_at_its_step_and_stays_named():
    _, alarms = watched(outage, trainer="verl")
    found = [a for a in alarms if a.rule == "collapse"]
    assert [a.level for a in found] == ["warn", "critical"] and abs(found[0].step - OUTAGE) <= 3
    assert {a.story for a in found} == {"tool or data changed"}
    assert "do not roll back" in found[1].remedy and "go back to the last checkpoint" not in found[1].remedy
    assert "Against it would speak" in found[0].message


def test_slow_generation_alone_is_no_alarm():
    def slow(step, metrics):
        outage(0, metrics)
        metrics["t_rollout_s"] = 14.0 if step == 60 else 4.6
        metrics["reward"] = 0.32 + 0.01 * (step % 3)

    assert [a for a in watched(slow)[1] if a.rule == "collapse"] == []


def test_a_cliff_after_a_large_update_is_not_blamed_on_the_tool():
    def both(step, metrics):
        outage(step, metrics)
        metrics["t_rollout_s"], metrics["response_length"] = 4.6, 385.0
        metrics["clip_fraction"] = 0.09 if step >= OUTAGE - 1 else 0.0002
        if step >= OUTAGE:
            metrics["entropy"] = 0.5

    assert "tool or data changed" not in {a.story for a in watched(both)[1]}


@pytest.mark.parametrize(
    ("delta", "at", "story"),
    [
        (-0.001, OUTAGE, True),  # the cliff alone: the update did next to nothing
        (None, OUTAGE, True),  # not measured
        (-0.2, OUTAGE, False),  # the update of the step lowered correct responses
        (-0.2, OUTAGE - 1, False),  # or the one before it, whose policy sampled the step
        (-0.2, OUTAGE - 2, True),  # an older one explains no cliff
    ],
)
def test_a_cliff_is_not_the_tools_where_correct_responses_were_measured_to_lose_likelihood(delta, at, story):
    def cliff(step, metrics):
        outage(step, metrics)
        metrics["t_rollout_s"], metrics["response_length"], metrics["turns"] = 4.6, 385.0, 4.0
        metrics["entropy"] = 0.05
        if delta is not None:
            metrics["delta_correct"] = delta if step == at else -0.0005

    found = [a for a in watched(cliff, n=OUTAGE + 4)[1] if a.rule == "collapse"]
    assert found and ("tool or data changed" in {a.story for a in found}) is story


def test_the_guard_acts_only_where_acting_helps():
    monitor, guard, acts = Monitor(), Guard(GuardConfig(enabled=True)), []
    for record in records(90, outage):
        acts.append(guard.decide(record, monitor.observe(record), monitor.decay_onset(), monitor.active()))
    assert [a for a in acts if a is not None] == []

    def large(step, metrics):
        metrics.update(clip_fraction=0.08, reward=0.5 + 0.01 * (step % 3))

    monitor, guard = Monitor(), Guard(GuardConfig(enabled=True))
    acts = [guard.decide(r, monitor.observe(r), None, monitor.active()) for r in records(30, large)]
    assert [a.kind for a in acts if a is not None][:1] == ["protect"]
    assert "tool or data changed" not in ACTING and "reward hacking" not in ACTING


def falling(**signs):
    """A reward that goes from step 40 on, with what else is seen from then on."""

    def change(step, metrics):
        base = {"reward": 0.6 + 0.01 * (step % 3), "entropy": 0.4 + 0.01 * (step % 2), "grad_norm": 0.5, "lr": 1e-4}
        base |= {"response_length": 100.0 + step % 3, "mismatch": 0.004, "correct_rate": 0.6}
        metrics.clear()
        metrics.update(base)
        if step >= 40:
            metrics["reward"] *= 0.9 ** (step - 39)
            metrics.update({k: v(step) if callable(v) else v for k, v in signs.items()})

    return change


def stories(change):
    return {a.story for a in watched(change)[1] if a.rule == "collapse"}


def test_each_story_has_its_sign():
    assert stories(falling(grad_norm=1e6)) == {"numerical failure"}
    assert stories(falling(mismatch=lambda s: 0.03 * 1.05 ** (s - 39))) == {"train-inference mismatch"}
    assert stories(falling(truncated_share=0.9)) == {"length explosion"}
    assert "updates too large" in stories(lambda s, m: (falling()(s, m), m.update(clip_fraction=0.09)))
    assert stories(falling(entropy=0.01)) >= {"entropy collapse"}
    assert stories(falling(groups_equal=1.0)) == {"data exhausted"}
    assert stories(falling()) == {"policy degrades"}


def test_held_out_reward_that_falls_while_training_holds_is_reward_hacking():
    monitor, found = Monitor(), []
    for step in range(120):
        metrics = {"reward": 0.3 + 0.004 * step + 0.01 * (step % 3)}
        if step % 20 == 19:
            metrics["validation"] = 0.4 if step < 60 else 0.2
        found += monitor.observe(StepRecord(step, metrics))
    [alarm] = [a for a in found if a.rule == "validation"]
    assert (alarm.step, alarm.level, alarm.story) == (99, "warn", "reward hacking")


def test_a_length_that_jumps_back_to_its_usual_is_the_policys():
    """Two long steps of a policy that was pushed too far, then its usual length again: nothing outside has changed."""

    def back(step, metrics):
        metrics["response_length"] = 42.0 if step in (60, 61) else 23.0 + 0.5 * (step % 3)
        metrics["entropy"] = 0.25 if step not in (60, 61) else 0.57
        metrics["reward"] = 0.8 if step < 60 else 0.4 + 0.01 * (step % 3)
        metrics["clip_fraction"] = 0.004 if step < 58 else 0.08

    _, alarms = watched(back)
    found = [a for a in alarms if a.rule == "collapse"]
    assert found and "tool or data changed" not in {a.story for a in found}


def test_a_length_that_jumps_after_an_update_that_lowered_correct_responses_is_the_policys():
    def jump(lowered):
        def change(step, metrics):
            outage(step, metrics)
            metrics["t_rollout_s"] = 4.6
            if lowered:
                metrics["delta_correct"] = -0.2 if step in (OUTAGE - 1, OUTAGE) else 0.004

        return {a.story for a in watched(change)[1] if a.rule == "collapse"}

    assert "tool or data changed" in jump(False)
    assert "tool or data changed" not in jump(True)
