import math

import pytest

from agentrl.engines.shared.probe import FACTOR, FIRST, LEAST, Limit, mean_gap


def test_the_gap_is_the_mean_over_all_tokens():
    one, other = [[-1.0] * 40, [-2.0] * 24], [[-1.1] * 40, [-1.5] * 24]
    assert mean_gap(one, other) == pytest.approx((40 * 0.1 + 24 * 0.5) / 64)
    assert mean_gap(other, one) == mean_gap(one, other) and mean_gap(one, one) == 0
    with pytest.raises(ValueError, match="a probe of 63 tokens; it has 64 or more"):
        mean_gap([[0.0] * 63], [[0.0] * 63])
    with pytest.raises(ValueError):
        mean_gap([[0.0] * 64], [[0.0] * 65])


def test_a_nan_passes_no_limit():
    gap = mean_gap([[0.0] * 63 + [math.nan]], [[0.0] * 64])
    assert not gap <= Limit("bfloat16").nats


def test_the_first_hand_over_decides_what_is_too_much():
    limit = Limit("bfloat16")
    assert limit.nats == FIRST["bfloat16"]
    limit.learn(0.044)
    limit.learn(0.2)  # later ones are not the baseline
    assert limit.nats == pytest.approx(FACTOR * 0.044)
    assert 0.055 <= limit.nats < 0.172  # a correct run passes, and 2 % of noise on the weights does not
    exact = Limit("float32")
    exact.learn(1e-6)
    assert exact.nats == LEAST["float32"]
    fixed = Limit("bfloat16", fixed=0.5)
    fixed.learn(0.01)
    assert fixed.nats == 0.5
