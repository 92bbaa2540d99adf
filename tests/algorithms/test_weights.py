"""Token weights: what they multiply, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from agentrl.algorithms import weigh_tokens
from agentrl.algorithms.weights import nthr
from agentrl.errors import AlgorithmError

ADVANTAGES = torch.tensor([[2.0, -3.0, 0.0], [4.0, 5.0, 0.0]])
BATCH = SimpleNamespace(action_mask=torch.tensor([[True, True, False], [True, True, False]]))
FACTOR = torch.tensor([[1.0, 0.25, float("nan")], [1.0, 0.5, float("inf")]])  # what stands off action is not read


def half(advantages, batch, scores):
    """A weight that reads all it is given."""
    assert batch is BATCH and scores.nthr_factor is FACTOR and advantages.shape == (2, 3)
    return torch.full_like(advantages, 0.5)


def too_short(advantages, batch, scores):
    return advantages[:1]


def number(advantages, batch, scores):
    return 0.5


def broken(advantages, batch, scores):
    return torch.full_like(advantages, float("nan"))


def named(function):
    return f"{__name__}:{function.__name__}"


SCORES = SimpleNamespace(logprobs=None, entropy=None, nthr_factor=FACTOR)


def test_weights_multiply_in_turn_on_action_tokens_alone():
    assert weigh_tokens([], ADVANTAGES, BATCH, SCORES) is ADVANTAGES
    assert weigh_tokens(["nthr"], ADVANTAGES, BATCH, SCORES).tolist() == [[2.0, -0.75, 0.0], [4.0, 2.5, 0.0]]
    both = weigh_tokens(["nthr", named(half)], ADVANTAGES, BATCH, SCORES)
    assert both.tolist() == [[1.0, -0.375, 0.0], [2.0, 1.25, 0.0]]
    assert weigh_tokens([named(half)], torch.ones(2, 3), BATCH, SCORES).tolist() == [[0.5, 0.5, 0.0]] * 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (too_short, "gives (1, 3); it must give (2, 3)"),
        (number, "gives float; it must give (2, 3)"),
        (broken, "is not finite on a token of the batch"),
    ],
)
def test_a_weight_of_another_kind_is_refused(function, message):
    with pytest.raises(AlgorithmError) as error:
        weigh_tokens([named(function)], ADVANTAGES, BATCH, SCORES)
    assert str(error.value) == f"token weight {named(function)!r} {message}"


def test_nthr_without_scores_says_how_to_switch_it_on():
    with pytest.raises(AlgorithmError) as error:
        nthr(ADVANTAGES, BATCH, SimpleNamespace(nthr_factor=None))
    assert str(error.value) == "token weight nthr has no scores: it is switched on by algorithm.nthr.enabled"
