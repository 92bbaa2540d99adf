"""A loss: what one token adds."""

from agentrl.config import LossConfig
from torch import Tensor


def unclipped(logprobs: Tensor, ratio: Tensor, advantages: Tensor, action_mask: Tensor, config: LossConfig) -> Tensor:
    """REINFORCE: −A log π."""
    return -advantages * logprobs
