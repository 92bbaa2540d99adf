"""How different responses are, on small hand-built cases."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.train.diversity import control_tokens, diversity, information
from agentrl.types import Trajectory, Turn


def episode(group, *turns, stop="stop", error=None):
    made = tuple(Turn([0], list(ids), [-0.1] * len(ids), "", "", 0.0, stop) for ids in turns)
    return Trajectory(f"{group}-s", group, "e", 0, made, 0.0, False, True, False, error)


def test_equal_responses_have_no_distance_and_no_information():
    found = diversity([episode(g, [1, 2, 3]) for g in "aabb"])
    assert found == {"diversity_within": 0.0, "diversity_between": 0.0, "question_information": 0.0}


def test_responses_that_are_a_matter_of_the_question_alone():
    found = diversity([episode("a", [1] * 200), episode("a", [1] * 200), episode("b", [2] * 200)])
    assert found["diversity_within"] == 0.0 and found["diversity_between"] == 1.0
    assert found["question_information"] == pytest.approx(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3), abs=2e-3)


def test_distance_is_that_of_token_pairs():
    found = diversity([episode("a", [1, 2, 3]), episode("a", [1, 2, 4])])
    assert found == {"diversity_within": pytest.approx(0.5)}  # pairs (1, 2), (2, 3) and (2, 4), and the same first


def test_failed_and_empty_episodes_are_left_out():
    assert diversity([episode("a", [1, 2]), episode("a", [], []), episode("a", [3, 4], error="down")]) == {}


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=2, max_size=5))
def test_information_is_the_formula_and_never_negative(lists):
    def entropy(tokens):
        n = len(tokens)
        plug_in = sum(-c / n * math.log(c / n) for c in Counter(tokens).values())
        return plug_in + (len(set(tokens)) - 1) / (2 * n)

    everything = [t for one in lists for t in one]
    given_list = sum(len(one) / len(everything) * entropy(one) for one in lists)
    assert information(lists) == pytest.approx(max(0.0, entropy(everything) - given_list), abs=1e-12)


def test_many_tokens_without_a_difference_have_hardly_any_information():
    same = [[i % 7 for i in range(k, k + 70)] for k in range(6)]
    assert information(same) < 0.01


def test_control_tokens_inside_a_turn_count_and_its_end_does_not():
    assert control_tokens([episode("a", [5, 9, 6, 9])], {9}) == {"control_tokens": 0.25}
    assert control_tokens([episode("a", [5, 6, 7, 9], stop="length")], {9}) == {"control_tokens": 0.25}
    assert control_tokens([episode("a", [5, 6, 7, 9])], {9}) == {"control_tokens": 0.0}
    failed = replace(episode("a", [9, 9]), error="down")
    assert control_tokens([failed], {9}) == {}
