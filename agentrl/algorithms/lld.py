"""Lazy likelihood displacement: how far one update moved the correct responses (NTHR Def. 4.1, LLDS Eq. 2-3).

Sources: Deng et al. 2025, arXiv 2505.18830, Def. 4.1 and Eq. (2); arXiv 2512.04220, Eq. (2)-(3). For a question x with
N⁺ correct responses, Δ(x) = (1/N⁺) Σ_i [log π_new(y_i) - log π_old(y_i)], summed over action tokens. Displacement
occurs where Δ(x) ≤ ε. The group hidden-embedding score that predicts it, GWHES, comes with the NTHR scores (`nthr.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Displacement:
    """One entry per group that has a correct response, in ascending order of its id."""

    groups: Tensor  # (Γ,) ids
    per_response: Tensor  # (Γ,) nats per response: Δ(x)
    per_token: Tensor  # (Γ,) nats per token: mean over correct responses of their mean change
    per_turn: Tensor | None  # (Γ, turns) nats: Δ_t; its sum over turns is Δ(x); NaN where no correct response acted

    def share(self, epsilon: float = 0.0) -> float | None:
        """Share of groups with Δ(x) ≤ epsilon; None without groups."""
        return float((self.per_response <= epsilon).double().mean()) if len(self.groups) else None


@torch.no_grad()
def displacement(
    old_logprobs: Tensor,
    new_logprobs: Tensor,
    action_mask: Tensor,
    group_ids: Tensor,
    correct: Tensor,
    *,
    turn_ids: Tensor | None = None,
) -> Displacement:
    """Δ(x) and Δ_t per group, and Δ per token.

    old_logprobs, new_logprobs, action_mask, turn_ids (-1 off action) (B, S); group_ids, correct (B,). Groups without a
    correct response have no Δ and do not appear. A response without action tokens changes by 0.
    """
    rows = correct.nonzero()[:, 0]
    mask = action_mask[rows]
    change = (new_logprobs[rows] - old_logprobs[rows]).double().masked_fill(~mask, 0.0)  # (R, S)
    groups, slot, n = torch.unique(group_ids[rows], return_inverse=True, return_counts=True)

    def mean_over_correct(x: Tensor) -> Tensor:
        out = x.new_zeros((len(groups), *x.shape[1:])).index_add_(0, slot, x)
        return out / n.view(-1, *[1] * (x.dim() - 1))

    total = change.sum(1)
    per_turn = None
    if turn_ids is not None:
        turn = (turn_ids[rows] + 1).clamp(min=0)  # column 0 gathers what is off action
        shape = (len(rows), int(turn.max()) + 1 if turn.numel() else 1)
        sums = change.new_zeros(shape).scatter_add_(1, turn, change)[:, 1:]
        acted = change.new_zeros(shape).scatter_(1, turn, 1.0)[:, 1:]
        per_turn = mean_over_correct(sums).masked_fill(mean_over_correct(acted) == 0, float("nan")).float()
    return Displacement(
        groups,
        mean_over_correct(total).float(),
        mean_over_correct(total / mask.sum(1).clamp(min=1)).float(),
        per_turn,
    )
