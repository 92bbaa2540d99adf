import csv
import itertools
import json
import math
import random
from pathlib import Path

from agentrl.monitors import Monitor, StepRecord
from agentrl.monitors.phases import PhaseClassifier, death_spiral
from agentrl.monitors.stats import Series
from agentrl.monitors.thresholds import SpiralThresholds


def classify(likelihood, reward, entropy=None, grad_norm=None, noise=0.0, seed=0):
    """The phase after every step of the given shapes (functions of the step)."""
    rng = random.Random(seed)
    shapes = {"logprob_correct": likelihood, "reward": reward, "entropy": entropy, "grad_norm": grad_norm}
    scales = {"logprob_correct": "neglog", "entropy": "log", "grad_norm": "log"}
    series = {k: Series(scales.get(k, "linear")) for k, f in shapes.items() if f}
    classifier, states = PhaseClassifier(), []
    for step in range(60):
        for name, one in series.items():
            one.push(step, shapes[name](step) * (1 + noise * rng.gauss(0, 1)))
        states.append(classifier.observe(step, series))
    return states


def rising(step):
    return 0.2 + 0.01 * step


def flat(_step):
    return 0.4


def test_warm_up_comes_first_then_learning():
    states = classify(lambda s: -0.4 + 0.005 * s, rising, noise=0.01)
    assert [s.phase for s in states[:9]] == ["warmup"] * 9
    assert states[-1].phase == "learning"
    assert states[-1].decay_since is None


def test_phase_one_is_flat_likelihood_under_a_rising_reward():
    assert classify(lambda s: -0.2, rising, noise=0.02)[-1].phase == "I"


def test_plateau_is_when_neither_moves():
    assert classify(lambda s: -0.2, flat, noise=0.02)[-1].phase == "plateau"


def test_phase_two_is_a_steady_fall_with_rising_reward():
    state = classify(lambda s: -0.1 * 1.01**s, rising, flat, flat, noise=0.01)[-1]
    assert state.phase == "II"
    assert state.slopes["logprob_correct"] < 0 < state.slopes["reward"]


def test_phase_three_is_a_fall_with_rising_entropy_and_gradient_norm():
    states = classify(
        lambda s: -0.1 * 1.01 ** min(s, 40) * 1.1 ** max(0, s - 40),
        rising,
        lambda s: 0.3 * 1.03 ** max(0, s - 40),
        lambda s: 0.5 * 1.03 ** max(0, s - 40),
        noise=0.005,
    )
    assert states[35].phase == "II"
    assert states[-1].phase == "III"
    assert 40 < states[-1].since < 55
    assert states[-1].decay_since is not None and states[-1].decay_since <= 25  # a good place to go back to


def test_lost_reward_is_phase_three_whatever_the_survivors_say():
    assert classify(lambda s: -0.2, lambda s: 0.8 if s < 30 else 0.1)[-1].phase == "III"


def test_one_odd_step_does_not_change_the_phase():
    phases = [s.phase for s in classify(lambda s: -0.2, flat, noise=0.1, seed=3)][10:]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(phases))
    assert runs <= 5


def test_without_likelihood_there_is_no_phase():
    classifier = PhaseClassifier()
    series = {"reward": Series()}
    for step in range(30):
        series["reward"].push(step, 0.5)
        state = classifier.observe(step, series)
    assert state.phase == "warmup"


def sparse(likelihood_steps, reward, steps=60):
    """Phases where correct responses exist only at some steps."""
    series = {"reward": Series(), "logprob_correct": Series("neglog")}
    classifier, phases = PhaseClassifier(), []
    for step in range(steps):
        series["reward"].push(step, reward(step))
        if step in likelihood_steps:
            series["logprob_correct"].push(step, -0.3)
        phases.append(classifier.observe(step, series).phase)
    return phases


def test_correct_responses_that_vanish_early_do_not_leave_the_run_in_warm_up():
    fell = sparse(range(7), lambda s: 0.5 if s < 8 else 0.0)
    assert fell[:9] == ["warmup"] * 9 and fell[20:] == ["III"] * 40
    never_had_much = sparse({0, 3}, lambda s: 0.005 if s in (0, 3) else 0.0)
    assert never_had_much[10] == "warmup" and never_had_much[20:] == ["plateau"] * 40
    rare = sparse(range(0, 60, 5), lambda s: 0.1)  # still coming: it takes ten of them to say anything
    assert rare[40] == "warmup" and rare[-1] != "warmup"


def test_a_reward_that_is_gone_is_phase_three_also_without_any_likelihood():
    phases = sparse((), lambda s: 0.6 if s < 30 else 0.0)
    assert phases[29] == "warmup" and phases[45] == "III"


def delta(values):
    series = Series()
    for step, value in enumerate(values):
        series.push(step, value)
    return death_spiral(series, SpiralThresholds())


def test_death_spiral_is_negative_and_getting_more_negative():
    assert delta([-0.01 - 0.002 * i for i in range(12)])
    assert not delta([-0.03 + 0.002 * i for i in range(12)])  # negative, but recovering
    assert not delta([-0.001 - 0.0001 * i for i in range(12)])  # below the size that matters
    assert not delta([0.01] * 12)
    assert not delta([-0.01 - 0.002 * i for i in range(11)])  # too short to say


def test_the_spirals_limits_are_where_they_are_said_to_be():
    """Exactly 60 % negative is enough for a share of 0.6 (of ten), one fewer is not; the median must be below -ε."""
    ten = SpiralThresholds(window=10)

    def spiral(values, t=ten):
        series = Series()
        for step, value in enumerate(values):
            series.push(step, value)
        return death_spiral(series, t)

    six = [0.02, 0.02, -0.02, -0.02, -0.02, 0.02, 0.02, -0.03, -0.03, -0.03]
    assert spiral(six) and sum(v < 0 for v in six) == 6
    assert not spiral(six, SpiralThresholds(window=10, share=0.7))
    five = [0.01, 0.01, 0.01, -0.03, -0.03, 0.01, 0.01, -0.04, -0.04, -0.04]
    assert not spiral(five)
    small = [-0.004] * 5 + [-0.0049] * 5
    assert not spiral(small) and spiral(small, SpiralThresholds(window=10, epsilon=0.004))


def test_the_alarm_and_the_collapse_rule_report_the_same_spiral():
    from agentrl.monitors import Monitor, StepRecord, Thresholds

    monitor = Monitor(Thresholds().changed({"death_spiral.window": 10, "epsilon": 0.004}))
    found = {}
    for step in range(30):
        values = {"reward": 0.5 + 0.01 * (step % 3), "delta_correct": -0.0045 - 1e-5 * step}
        for alarm in monitor.observe(StepRecord(step, values)):
            found.setdefault(alarm.rule, alarm.signals["delta_correct"])
    assert found.keys() == {"death_spiral", "collapse"}
    assert found["death_spiral"] == found["collapse"]
    assert found["death_spiral"]["threshold"] == -0.004 and found["death_spiral"]["value"] < -0.004


def test_state_survives_json():
    series = {"logprob_correct": Series("neglog")}
    one = PhaseClassifier()
    for step in range(30):
        series["logprob_correct"].push(step, -0.2 - 0.01 * step)
        one.observe(step, series)
    two = PhaseClassifier()
    two.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    series["logprob_correct"].push(30, -0.6)
    assert one.observe(30, series) == two.observe(30, series)


def test_a_healthy_quickstart_shows_no_phase_of_a_collapse():
    """Recorded. Its likelihood falls from -0.1 to -0.3 while harder questions are answered: the updates raise it."""
    with open(Path(__file__).parent / "data" / "phases" / "quickstart.csv", newline="") as handle:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
    monitor, phases = Monitor(rules=[]), []
    for row in rows:
        monitor.observe(StepRecord(int(row.pop("step")), row))
        phases.append(monitor.phase.phase)
    assert len(phases) == 90 and "learning" in phases
    assert set(phases) == {"warmup", "learning", "plateau"}


def test_what_is_neither_flat_nor_rising_stays_what_it_was():
    """Learning slows down: with the slope between one and two standard errors it is not called flat yet."""
    rng = random.Random(3)
    likelihood = Series("neglog")
    reward = Series()
    classifier, seen = PhaseClassifier(), []
    for step in range(70):
        likelihood.push(step, -0.5 * math.exp(-0.03 * min(step, 30)) * (1 + 0.02 * rng.gauss(0, 1)))
        reward.push(step, 0.2 + 0.01 * step + 0.01 * rng.gauss(0, 1))
        state = classifier.observe(step, {"logprob_correct": likelihood, "reward": reward})
        z = likelihood.trend(20)[1] if step > 20 else 0.0
        if 1.0 < abs(z) < 2.0 and seen[-1] == "learning":
            assert state.phase == "learning"
        seen.append(state.phase)
    assert "learning" in seen and seen[-1] == "I"


def test_a_loss_of_half_counts_as_the_end_only_where_it_is_more_than_noise():
    for noise, expected in ((0.02, "III"), (0.6, "plateau")):
        rng = random.Random(1)
        series = {"logprob_correct": Series("neglog"), "reward": Series(judged=True)}
        classifier = PhaseClassifier()
        for step in range(60):
            series["logprob_correct"].push(step, -0.2 * (1 + 0.05 * rng.gauss(0, 1)))
            series["reward"].push(step, (0.6 if step < 45 else 0.2) + noise * rng.gauss(0, 1))
            state = classifier.observe(step, series)
        assert state.phase == expected
