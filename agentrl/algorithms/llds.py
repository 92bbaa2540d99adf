"""LLDS: keep the likelihood of what was good (LLDS §5.5).

Source: Deng et al. 2025, *On GRPO Collapse in Search-R1*, arXiv 2512.04220, §5.5 and App. B.3. With
d = log π_old - log π_θ per action token of the responses whose advantage is ≥ 0 (zero included), the loss adds
w·max(0, d) where the gate is open and divides by the number of action tokens of the batch:

    action    a turn's tokens, if Σ d over that turn is positive
    response  the response's tokens, if Σ d over all its action tokens is positive
    token     always

The gate is a decision and carries no gradient. On the first update after a rollout d = 0 and the loss is zero. Two
passes over the same policy differ by rounding, though, and a gate that rounding opens passes a whole gradient on (λ,
not λ·d). So a gate opens where Σ d > `margin` · √tokens only: the trainer sets the margin to infinity while the policy
is the one that was scored, and else to a multiple of the noise that it has measured there (`noise_of`). 0 is the
paper's.
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
    margin: float = 0.0,
    divisor: float | Tensor | None = None,
) -> Tensor:
    """The likelihood-preserving loss without λ, a scalar.

    All tensors (B, S); log-probabilities in nats; turn_ids -1 off action. answer_mask marks the final answer span,
    whose tokens weigh `answer_weight` (LLDS-MA). divisor: the action tokens of the whole batch where this is a
    micro-batch of it. Raises AlgorithmError.
    """
    term = llds_term(
        logprobs, old_logprobs, advantages, action_mask, turn_ids,
        gate=gate, answer_mask=answer_mask, answer_weight=answer_weight, margin=margin,
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
    margin: float = 0.0,
) -> LLDSTerm:
    """The undivided sum and how many gates are open; arguments as `llds_loss`, turn_ids only for the action gate.

    margin: nats per √token that a gate's Σ d must exceed.
    """
    kept = ~((advantages < 0) & action_mask).any(1, keepdim=True)  # (B, 1)
    counted = action_mask & kept  # (B, S)
    d = (old_logprobs - logprobs).masked_fill(~counted, 0.0)
    cost = torch.relu(d)  # its gradient at d = 0 is 0, so that the first update is left alone whatever the gate
    if answer_weight != 1.0:
        if answer_mask is None:
            raise AlgorithmError(f"answer_weight is {answer_weight:g}, but there is no answer_mask to apply it to")
        cost = torch.where(answer_mask, cost * answer_weight, cost)
    if gate == "token":
        return LLDSTerm(cost.masked_fill(d.detach() <= margin, 0.0).sum())
    if gate == "response":
        least = margin * counted.sum(1, keepdim=True).clamp(min=1).sqrt()  # (B, 1)
        is_open = d.detach().sum(1, keepdim=True) > least
        exists = counted.any(1)
        return LLDSTerm(cost.masked_fill(~is_open, 0.0).sum(), is_open.sum(), exists.sum())
    if gate != "action":
        raise AlgorithmError(f"gate {gate!r} does not exist{nearest(gate, GATES)}; known: {', '.join(GATES)}")
    if turn_ids is None:
        raise AlgorithmError("the action gate needs turn_ids; pass them, or use the response or token gate")
    turn = (turn_ids + 1).clamp(min=0)  # (B, S); column 0 gathers what is off action
    change = d.new_zeros(len(d), int(turn.max()) + 1 if turn.numel() else 1)  # (B, turns + 1)
    change.scatter_add_(1, turn, d.detach())
    tokens = torch.zeros_like(change).scatter_add_(1, turn, counted.to(d.dtype))
    is_open = change > margin * tokens.clamp(min=1).sqrt()
    total = cost.masked_fill(~is_open.gather(1, turn), 0.0).sum()
    exists = torch.zeros_like(is_open).scatter_(1, turn, True) & kept
    return LLDSTerm(total, is_open[:, 1:].sum(), exists[:, 1:].sum())


def noise_of(
    logprobs: Tensor, old_logprobs: Tensor, action_mask: Tensor, turn_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(Σ over turns of (Σ d)² / tokens, number of turns), two scalars: the square of what rounding does to a gate.

    All tensors (B, S); two passes over one policy. Without turn_ids a response is one turn. The root of the quotient is
    in nats per √token, which is what `margin` counts in.
    """
    d = (old_logprobs - logprobs).detach().masked_fill(~action_mask, 0.0)
    turn = action_mask.long() if turn_ids is None else (turn_ids + 1).clamp(min=0)  # column 0: off action
    zero = d.new_zeros(len(d), int(turn.max()) + 1 if turn.numel() else 1)
    sums, tokens = zero.scatter_add(1, turn, d)[:, 1:], zero.scatter_add(1, turn, action_mask.to(d.dtype))[:, 1:]
    return (sums.square() / tokens.clamp(min=1)).sum(), (tokens > 0).sum()
