"""Advantages of responses within their group (docs/algorithms.md).

Sources: GRPO and Pos-Only as in Deng et al. 2025, arXiv 2505.18830, §2-3; RLOO, Skew-R and the pass@K rows as in
Thrampoulidis et al. 2025, arXiv 2510.23049; Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) drops the division by σ.

Everything is computed for all groups at once: a group's statistics are scattered into one slot per group and gathered
back to its responses, so groups may have any size, any integer id and any order.

A response is *correct* if its reward is 1, or where `correct` says so. Rows that count correct responses (`skew_r` and
the pass@K rows) refuse other rewards unless `correct` is given, and then use correctness as the reward. Which those are
stands in `agentrl.config.advantages`, one row for each function here.
Left out on purpose: an ε under the division by σ. A group without contrast is 0 by definition, every other is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agentrl import plugins
from agentrl.config import advantages as rows
from agentrl.errors import AlgorithmError, PluginError
from agentrl.rewards import ABSOLUTE, RELATIVE, slack


@dataclass(frozen=True)
class GroupStats:
    """What each response knows of itself and of its group; all (B,) float64."""

    reward: Tensor
    mean: Tensor
    std: Tensor  # population
    size: Tensor  # G
    right: Tensor  # N⁺; only meaningful for binary rewards
    k: int

    @property
    def wrong(self) -> Tensor:
        """N⁻ (B,)."""
        return self.size - self.right

    @property
    def rho(self) -> Tensor:
        """Share of correct responses (B,)."""
        return self.right / self.size


def all_failing(wrong: Tensor, size: Tensor, draws: int) -> Tensor:
    """P(every one of `draws` draws without replacement fails) = C(wrong, draws) / C(size, draws), for (B,) tensors.

    A product of ratios, exact where binomials would overflow. Draws beyond the size of a set do not count, so that
    C(wrong, draws) / C(size, draws) means `min(draws, size)` draws.
    """
    j = torch.arange(draws, device=wrong.device)
    left = size[:, None] - j  # (B, draws)
    ratio = (wrong[:, None] - j).clamp(min=0) / left.clamp(min=1)
    return torch.where(left > 0, ratio, 1.0).prod(1)


def rloo(g: GroupStats) -> Tensor:
    """Reward minus the mean of the others: G/(G-1) (r - mean)."""
    return (g.reward - g.mean) * g.size / (g.size - 1)


def grpo(g: GroupStats) -> Tensor:
    """(r - mean) / σ: √((1-ρ)/ρ) and -√(ρ/(1-ρ)) for binary rewards."""
    return (g.reward - g.mean) / g.std


def dr_grpo(g: GroupStats) -> Tensor:
    """r - mean."""
    return g.reward - g.mean


def reinforce(g: GroupStats) -> Tensor:
    """r, in groups of equal rewards, too: nothing is compared."""
    return g.reward


def pos_only(g: GroupStats) -> Tensor:
    """GRPO without its negative part."""
    return grpo(g).clamp(min=0)


def skew_r(g: GroupStats) -> Tensor:
    """(1-ρ) GRPO."""
    return (1 - g.rho) * grpo(g)


def _leave_one_out(g: GroupStats) -> Tensor:
    """f⁺ or f⁻ (B,): do K-1 of the *other* G-1 responses all fail? Estimates (1-ρ)^(K-1) without bias."""
    return all_failing(g.wrong - (1 - g.reward), g.size - 1, g.k - 1)


def rloo_k(g: GroupStats) -> Tensor:
    """Leave-one-out failure weight times RLOO."""
    return _leave_one_out(g) * rloo(g)


def grpo_k(g: GroupStats) -> Tensor:
    """Leave-one-out failure weight times GRPO."""
    return _leave_one_out(g) * grpo(g)


def grpo_tilde_k(g: GroupStats) -> Tensor:
    """w GRPO with w = √((1-ρ_K)/ρ_K) √(ρ/(1-ρ)), ρ_K = 1 - C(N⁻, K)/C(G, K)."""
    fail_k = all_failing(g.wrong, g.size, g.k)
    return (fail_k / (1 - fail_k) * g.right / g.wrong).sqrt() * grpo(g)


@torch.no_grad()
def advantages(name: str, rewards: Tensor, group_ids: Tensor, *, k: int = 1, correct: Tensor | None = None) -> Tensor:
    """The advantage of every response, (B,) float32.

    rewards (B,) finite; group_ids (B,) any integers in any order; k: K of the pass@K rows, in a group that is smaller
    (after failed rollouts) its size; correct (B,) bool, needed by rows that count correct responses where rewards are
    not 0 or 1, and obeyed by `pos_only`, which gives 0 to responses that are not correct. A group whose rewards are all
    equal (`agentrl.rewards`) gets 0, but with `reinforce`, which compares nothing. Raises AlgorithmError.
    """
    row, function = _named(name)
    if k < 1 or k != int(k):
        raise AlgorithmError(f"k is {k}; pass@K needs a whole k of 1 or more")
    if (
        rewards.dim() != 1
        or rewards.shape != group_ids.shape
        or (correct is not None and correct.shape != rewards.shape)
    ):
        shapes = [tuple(t.shape) for t in (rewards, group_ids, correct) if t is not None]
        raise AlgorithmError(f"rewards, group_ids and correct must all be (B,); their shapes are {shapes}")
    if correct is not None and correct.dtype != torch.bool:
        raise AlgorithmError(f"correct is {correct.dtype}; give bool, one per response: rewards >= threshold")
    r = rewards.double()
    if not bool(r.isfinite().all()):
        bad = int((~r.isfinite()).nonzero()[0])
        raise AlgorithmError(f"the reward of response {bad} is {float(r[bad])}; leave failed rollouts out of the batch")
    if row.counts_correct:
        r = _correctness(name, r, correct)
    ids, slot = torch.unique(group_ids, return_inverse=True)  # slot (B,): the group's place in the statistics below

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(len(ids)).index_add_(0, slot, x)[slot]

    size = total(torch.ones_like(r))
    mean = total(r) / size
    std = (total((r - mean).square()) / size).sqrt()
    low = r.new_empty(len(ids)).scatter_reduce_(0, slot, r, "amin", include_self=False)
    high = r.new_empty(len(ids)).scatter_reduce_(0, slot, r, "amax", include_self=False)
    out = function(GroupStats(r, mean, std, size, total(_is(r, 1.0).double()), int(k)))
    if not isinstance(out, Tensor) or out.shape != r.shape:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise AlgorithmError(f"advantage {name!r} gives {shape}; it must give (B,), here {tuple(r.shape)}")
    if row.incorrect == "zero" and correct is not None:
        out = out.where(correct, 0.0)
    noise = (RELATIVE * torch.maximum(low.abs(), high.abs())).clamp(min=ABSOLUTE)
    if row.needs_contrast:
        out = out.where((high - low > noise)[slot], 0.0)
    out = out.float()
    if not bool(out.isfinite().all()):
        bad = int((~out.isfinite()).nonzero()[0])
        raise AlgorithmError(
            f"advantage {name!r} gives {float(out[bad])} for response {bad} with reward {float(r[bad]):g}"
        )
    return out


def _is(r: Tensor, value: float) -> Tensor:
    """(B,) bool: rewards that are equal to `value` but for rounding."""
    return (r - value).abs() <= slack(value)


def _named(name: str) -> tuple[rows.Advantage, Any]:
    """The row of an advantage, and its function from GroupStats to (B,)."""
    try:
        row = rows.find(name)
        return row, plugins.load(row.function)
    except PluginError as error:
        raise AlgorithmError(str(error)) from error


def _correctness(name: str, r: Tensor, correct: Tensor | None) -> Tensor:
    """The 0/1 rewards of the rows that count correct responses."""
    if correct is not None:
        return correct.double()
    other = ~_is(r, 0.0) & ~_is(r, 1.0)
    if bool(other.any()):
        i = int(other.nonzero()[0])
        raise AlgorithmError(
            f"{name} counts correct responses, but response {i} has reward {float(r[i]):g}, neither 0 nor 1; "
            "say which are correct: correct=rewards >= threshold (config: algorithm.correct_threshold)"
        )
    return r.round()
