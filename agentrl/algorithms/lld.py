"""Lazy likelihood displacement: how far one update moved the correct responses (NTHR Def. 4.1, LLDS Eq. 2-3).

Sources: Deng et al. 2025, arXiv 2505.18830, Def. 4.1 and Eq. (2); arXiv 2512.04220, Eq. (2)-(3). For a question x with
N⁺ correct responses, Δ(x) = (1/N⁺) Σ_i [log π_new(y_i) - log π_old(y_i)], summed over action tokens. Displacement
occurs where Δ(x) ≤ ε. The group hidden-embedding score that predicts it, GWHES, comes with the NTHR scores (`nthr.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Displacement:
    """Γ groups that have a correct response, in ascending order of their ids; their R correct responses, as given."""

    groups: Tensor  # (Γ,) ids
    per_response: Tensor  # (Γ,) nats per response: Δ(x)
    per_token: Tensor  # (Γ,) nats per token: mean over correct responses of their mean change
    per_turn: Tensor | None  # (Γ, turns) nats: Δ_t; its sum over turns is Δ(x); NaN where no correct response acted
    rows: Tensor  # (R,) of the batch
    change: Tensor  # (R, S) nats, 0 off action
    row_per_token: Tensor  # (R,) nats per token
    of_group: dict[int, float]  # group id -> Δ per token, unrounded

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
    change = (new_logprobs[rows] - old_logprobs[rows]).masked_fill(~mask, 0.0)  # (R, S)
    groups, slot, n = torch.unique(group_ids[rows], return_inverse=True, return_counts=True)

    def mean_over_correct(x: Tensor) -> Tensor:
        out = torch.zeros((len(groups), *x.shape[1:]), dtype=torch.float64, device=x.device)
        return out.index_add_(0, slot, x.double()) / n.view(-1, *[1] * (x.dim() - 1))

    row_per_token = change.sum(1) / mask.sum(1).clamp(min=1)
    per_token = mean_over_correct(row_per_token)
    return Displacement(
        groups,
        mean_over_correct(change.sum(1)).float(),
        per_token.float(),
        None if turn_ids is None else _per_turn(change, turn_ids[rows], mean_over_correct),
        rows,
        change,
        row_per_token,
        dict(zip(groups.tolist(), per_token.tolist())),
    )


def _per_turn(change: Tensor, turn_ids: Tensor, mean_over_correct: Callable[[Tensor], Tensor]) -> Tensor:
    """(R, S) change to Δ_t (Γ, turns)."""
    turn = (turn_ids + 1).clamp(min=0)  # column 0 gathers what is off action
    shape = (len(change), int(turn.max()) + 1 if turn.numel() else 1)
    sums = change.new_zeros(shape).scatter_add_(1, turn, change)[:, 1:]
    acted = change.new_zeros(shape).scatter_(1, turn, 1.0)[:, 1:]
    return mean_over_correct(sums).masked_fill(mean_over_correct(acted) == 0, float("nan")).float()
