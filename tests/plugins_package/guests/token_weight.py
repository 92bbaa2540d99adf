"""A token weight: a multiplier of the advantages."""

from torch import Tensor

from agentrl.algorithms.weights import Scores
from agentrl.batch import TokenBatch


def first_tokens(advantages: Tensor, batch: TokenBatch, scores: Scores) -> Tensor:
    """0.5 after the first three action tokens of an episode."""
    return (batch.action_mask.cumsum(1) > 3).float() * -0.5 + 1


def by_entropy(advantages: Tensor, batch: TokenBatch, scores: Scores) -> Tensor:
    """The entropy of the scoring pass."""
    assert scores.entropy is not None
    return scores.entropy
