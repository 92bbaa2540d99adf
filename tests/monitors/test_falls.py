"""Losses against noise: the formulas of METHODS 8 on series where the answer is known."""

import json
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.monitors.falls import LONG, SHORT, Falls, RecentNoise, best_by_luck, lattice, quantile, row_noise


def fed(values):
    falls = Falls()
    for value in values:
        falls.push(value)
    return falls


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_the_quantile_is_numpys(values):
    expected = statistics.quantiles(values, n=5, method="inclusive")[3]
    assert quantile(values, 0.8) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_noise_of_normal_rows_is_their_deviation():
    rng = random.Random(0)
    found = [row_noise([rng.gauss(0.5, 0.1) for _ in range(60)]) for _ in range(200)]
    assert statistics.mean(found) == pytest.approx(0.1, rel=0.15)
    assert row_noise([0.0] * 20) == 0.0
    assert row_noise([0.0] * 10 + [1.0] + [0.0] * 10) > 0.1  # the quantile alone would be 0


def test_a_window_loss_is_the_formula():
    rng = random.Random(1)
    values = [0.8 + rng.gauss(0, 0.05) for _ in range(40)] + [0.3 + rng.gauss(0, 0.05) for _ in range(8)]
    falls = fed(values)
    means = [sum(values[i - 8 : i]) / 8 for i in range(8, 49)]
    error = falls.noise / math.sqrt(8)
    z = (max(means) - math.sqrt(2 * math.log(48 / 8)) * error - means[-1]) / (error * math.sqrt(2))
    found = falls.window(8)
    assert (found.share, found.z) == (pytest.approx(1 - means[-1] / max(means)), pytest.approx(z))
    assert falls.significant(0.45, 3.0) is not None and falls.lost(4.0) == pytest.approx(found.share, abs=0.05)


def test_the_exponential_mean_is_the_weighted_sum():
    values = [0.5, 0.7, 0.6, 0.9, 0.8, 0.7, 0.9, 0.4, 0.3]
    falls = fed(values)
    means, errors = [], []
    for n in range(1, len(values) + 1):
        weights = [(1 - 2 / 9) ** (n - 1 - i) for i in range(n)]
        means.append(sum(w * v for w, v in zip(weights, values)) / sum(weights))
        errors.append(math.sqrt(sum(w * w for w in weights)) / sum(weights))
    best = max(means[4:])
    error = falls.noise * errors[-1]
    found = falls.exponential()
    assert found.share == pytest.approx(1 - means[-1] / best)
    assert found.z == pytest.approx((best - best_by_luck(9, 8) * error - means[-1]) / (error * math.sqrt(2)))


@pytest.mark.parametrize("responses", [4, 8, 64, 256])
def test_stationary_runs_are_rarely_called_fallen(responses):
    """2,400 rows in all of a run that never changes: at most one false critical."""
    wrong = 0
    for seed in range(12):
        rng, falls = random.Random(seed), Falls()
        for _ in range(200):
            falls.push(sum(rng.random() < 0.5 for _ in range(responses)) / responses)
            if falls.significant(0.45, 3.0):
                wrong += 1
                break
    assert wrong <= 1


@pytest.mark.parametrize("responses", [64, 256])
def test_a_fall_to_a_tenth_is_found_within_four_rows(responses):
    for seed in range(10):
        rng, falls = random.Random(seed), Falls()
        for row in range(60):
            p = 0.6 if row < 50 else 0.06
            falls.push(sum(rng.random() < p for _ in range(responses)) / responses)
            if falls.significant(0.45, 3.0):
                break
        assert 50 <= row <= 54


def test_a_crash_is_two_rows_in_the_warm_up_too():
    falls = fed([0.9, 0.75, 0.95, 0.17, 0.03])
    found = falls.crash(2, 0.4, 4.0)
    assert found is not None and found.share == pytest.approx(1 - 0.1 / (2.6 / 3))
    assert fed([0.9, 0.75, 0.95, 0.17]).crash(2, 0.4, 4.0) is None  # one row is none
    assert fed([1.0, 0.5, 1.0, 0.0, 0.0]).crash(2, 0.4, 4.0) is None  # two responses a row: so it is all the time


def test_losses_are_measured_from_below_zero_where_rewards_begin_there():
    falls = fed([-0.5] + [0.5] * 30 + [0.0] * 30)
    assert falls.base == -0.5 and falls.window(8).share == pytest.approx(0.5)


def test_what_is_too_noisy_needs_more_rows():
    rng = random.Random(0)
    noisy = fed([float(rng.random() < 0.3) for _ in range(60)])
    assert noisy.needs(0.45, 3.0) >= 64
    steady = fed([0.5 + rng.gauss(0, 0.02) for _ in range(60)])
    assert steady.needs(0.45, 3.0) is None


def test_the_lattice_is_the_smallest_step():
    assert lattice([0.25, 0.5, 0.5, 0.75]) == 0.25 and lattice([0.5, 0.5]) == 0.0
    assert fed([0.25, 0.5, 0.75, 0.5, 0.25, 1.0]).few and not fed([0.5 + 0.001 * i for i in range(20)]).few


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.25, 1.0]) | st.floats(-2, 2), min_size=1, max_size=150),
    st.sampled_from([4, SHORT, LONG]),
)
def test_the_noise_kept_from_row_to_row_is_that_of_the_last_rows_to_the_bit(values, span):
    recent = RecentNoise(span)
    for end, value in enumerate(values, 1):
        recent.push(value)
        rows = values[:end][-span:]
        assert recent.noise() == row_noise(rows) and recent.lattice() == lattice(rows)
        assert RecentNoise(span, rows).noise() == recent.noise()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=90), st.data())
def test_state_survives_json(values, data):
    cut = data.draw(st.integers(0, len(values)))
    one = fed(values[:cut])
    two = Falls.restore(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    for value in values[cut:]:
        one.push(value)
        two.push(value)
    assert one.state_dict() == two.state_dict() and (one.noise, one.few) == (two.noise, two.few)
    assert (one.exponential(), one.lost(3.0), one.crash(2, 0.4, 4.0)) == (
        two.exponential(),
        two.lost(3.0),
        two.crash(2, 0.4, 4.0),
    )


def test_a_level_that_lasts_becomes_the_runs_own_and_a_second_fall_is_seen():
    rng = random.Random(0)
    noise = lambda level, n: [level + 0.01 * rng.gauss(0, 1) for _ in range(n)]  # noqa: E731
    falls = fed(noise(0.8, 100))
    for value in noise(0.3, 90):
        falls.push(value)
    assert falls.significant(0.37, 3.5) is not None
    for value in noise(0.3, 320):  # a whole block of FORGET rows
        falls.push(value)
    assert falls.significant(0.37, 3.5) is None
    for value in noise(0.1, 20):
        falls.push(value)
    again = falls.significant(0.37, 3.5)
    assert again is not None and again.peak == pytest.approx(0.3, abs=0.03)


def test_a_slow_decline_is_not_forgotten_on_its_way():
    rng = random.Random(0)
    falls = Falls()
    for row in range(2000):
        falls.push(0.8 - 0.0002 * row + 0.01 * rng.gauss(0, 1))
    found = falls.significant(0.45, 3.0)
    assert found is not None and found.peak == pytest.approx(0.8, abs=0.03)
