"""A loss: what one token adds."""

from torch import Tensor

from agentrl.config import LossConfig


def unclipped(logprobs: Tensor, ratio: Tensor, advantages: Tensor, action_mask: Tensor, config: LossConfig) -> Tensor:
    """REINFORCE: −A log π."""
    return -advantages * logprobs
