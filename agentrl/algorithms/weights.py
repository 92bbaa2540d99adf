"""Token weights: (B, S) multipliers of the advantages, in the order of `algorithm.token_weights`; NTHR is the first.

A weight is a function of (advantages (B, S), batch, scores) to (B, S); `scores` are those of the scoring pass, before
any update: `logprobs`, `entropy`, `nthr_factor`, each (B, S). Weights of one act like no weight at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from agentrl import plugins
from agentrl.batch import TokenBatch
from agentrl.errors import AlgorithmError


class Scores(Protocol):
    """What a weight may read of the scoring pass; an engine's ScoreResult is one."""

    @property
    def logprobs(self) -> Tensor:
        """Log π_old (B, S)."""
        ...

    @property
    def entropy(self) -> Tensor | None:
        """Of the policy at each token (B, S)."""
        ...

    @property
    def nthr_factor(self) -> Tensor | None:
        """NTHR's η where it selects a token, 1 elsewhere (B, S); None where it is off."""
        ...


def nthr(advantages: Tensor, batch: TokenBatch, scores: Scores) -> Tensor:
    """NTHR's factor (Deng et al. 2025, arXiv 2505.18830, §5); the engine has computed it where the model is."""
    if scores.nthr_factor is None:
        raise AlgorithmError("token weight nthr has no scores: it is switched on by algorithm.nthr.enabled")
    return scores.nthr_factor


def weigh_tokens(names: Sequence[str], advantages: Tensor, batch: TokenBatch, scores: Scores) -> Tensor:
    """The advantages (B, S) times every named weight. AlgorithmError for a weight of another shape or not finite."""
    for name in names:
        weight = plugins.find("token weight", name)(advantages, batch, scores)
        if not isinstance(weight, Tensor) or weight.shape != advantages.shape:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise AlgorithmError(f"token weight {name!r} gives {shape}; it must give {tuple(advantages.shape)}")
        if not bool(weight[batch.action_mask].isfinite().all()):
            raise AlgorithmError(f"token weight {name!r} is not finite on a token of the batch")
        advantages = advantages * weight.masked_fill(~batch.action_mask, 0.0)
    return advantages
