"""One tolerance: what rounding has parted is equal, what is different is not, and both are symmetrical."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rewards import all_equal, reaches, slack


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [
        ([1.0, 1.0000001], True),
        ([0.1] * 3, True),
        ([0.1 + 0.2, 0.3], True),
        ([0.1 * 3 - 0.3, 0.0], True),
        ([1.0, 1.00001], False),
        ([0.0, 1e-6], False),
        ([1e6, 1e6 + 0.5], True),
        ([-1.0, 1.0], False),
        ([2.0], True),
    ],
)
def test_equal_rewards(rewards, equal):
    assert all_equal(rewards) == equal == all_equal(reversed(rewards))


def test_the_threshold_is_reached_by_a_sum_that_rounding_has_left_below():
    assert sum([0.1] * 10) < 1.0 and reaches(sum([0.1] * 10), 1.0)
    assert reaches(1.0, 1.0) and reaches(0.5, 0.5) and not reaches(0.999, 1.0) and not reaches(0.0, 0.5)
    assert reaches(-0.1, -0.1) and reaches(0.0, 0.0)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_rewards_that_differ_by_more_than_the_slack_are_different(a, b):
    assert all_equal([a, b]) == (abs(a - b) <= slack(a, b))
