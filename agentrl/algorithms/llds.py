"""LLDS: keep the likelihood of what was good (LLDS §5.5).

Source: Deng et al. 2025, *On GRPO Collapse in Search-R1*, arXiv 2512.04220, §5.5 and App. B.3. With
d = log π_old - log π_θ per action token of the responses whose advantage is ≥ 0 (zero included), the loss adds
w·max(0, d) where the gate is open and divides by the number of action tokens of the batch:

    action    a turn's tokens, if Σ d over that turn is positive
    response  the response's tokens, if Σ d over all its action tokens is positive
    token     always

The gate is a decision and carries no gradient. On the first update after a rollout d = 0 and the loss is zero.
λ is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import AlgorithmError, nearest

GATES = ("action", "response", "token")


@dataclass(frozen=True)
class LLDSTerm:
    """`total` is the undivided sum (scalar, differentiable); the counts are of gates, detached, None for `token`."""

    total: Tensor
    open_gates: Tensor | None = None
    gates: Tensor | None = None


def llds_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    turn_ids: Tensor,
    *,
    gate: str = "action",
    answer_mask: Tensor | None = None,
    answer_weight: float = 1.0,
    divisor: float | Tensor | None = None,
) -> Tensor:
    """The likelihood-preserving loss without λ, a scalar.

    All tensors (B, S); log-probabilities in nats; turn_ids -1 off action. answer_mask marks the final answer span,
    whose tokens weigh `answer_weight` (LLDS-MA). divisor: the action tokens of the whole batch where this is a
    micro-batch of it. Raises AlgorithmError.
    """
    term = llds_term(
        logprobs, old_logprobs, advantages, action_mask, turn_ids,
        gate=gate, answer_mask=answer_mask, answer_weight=answer_weight,
    )  # fmt: skip
    return term.total / (action_mask.sum().clamp(min=1) if divisor is None else divisor)


def llds_term(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    turn_ids: Tensor | None,
    *,
    gate: str = "action",
    answer_mask: Tensor | None = None,
    answer_weight: float = 1.0,
) -> LLDSTerm:
    """The undivided sum and how many gates are open; arguments as `llds_loss`, turn_ids only for the action gate."""
    kept = ~((advantages < 0) & action_mask).any(1, keepdim=True)  # (B, 1)
    counted = action_mask & kept  # (B, S)
    d = (old_logprobs - logprobs).masked_fill(~counted, 0.0)
    cost = torch.relu(d)  # its gradient at d = 0 is 0, so that the first update is left alone whatever the gate
    if answer_weight != 1.0:
        if answer_mask is None:
            raise AlgorithmError(f"answer_weight is {answer_weight:g}, but there is no answer_mask to apply it to")
        cost = torch.where(answer_mask, cost * answer_weight, cost)
    if gate == "token":
        return LLDSTerm(cost.sum())
    if gate == "response":
        is_open = d.detach().sum(1, keepdim=True) > 0  # (B, 1)
        exists = counted.any(1)
        return LLDSTerm((cost * is_open).sum(), is_open.sum(), exists.sum())
    if gate != "action":
        raise AlgorithmError(f"gate {gate!r} does not exist{nearest(gate, GATES)}; known: {', '.join(GATES)}")
    if turn_ids is None:
        raise AlgorithmError("the action gate needs turn_ids; pass them, or use the response or token gate")
    turn = (turn_ids + 1).clamp(min=0)  # (B, S); column 0 gathers what is off action
    change = d.new_zeros(len(d), int(turn.max()) + 1 if turn.numel() else 1)  # (B, turns + 1)
    change.scatter_add_(1, turn, d.detach())
    is_open = change > 0
    total = (cost * is_open.gather(1, turn)).sum()
    exists = torch.zeros_like(is_open).scatter_(1, turn, True) & kept
    return LLDSTerm(total, is_open[:, 1:].sum(), exists[:, 1:].sum())
