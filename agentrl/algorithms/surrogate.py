"""Surrogate rewards: what an advantage maximises in the population limit (docs/algorithms.md, last column).

Source: Thrampoulidis et al. 2025, arXiv 2510.23049. With ∇₊, ∇₋ the mean ∇log π over correct and incorrect responses,
∇ρ = ρ(1-ρ)[∇₊ - ∇₋], so a group gradient c(ρ)[∇₊ - ∇₋] ascends the F with F′(ρ) ρ(1-ρ) = c(ρ). `rloo_k` carries the
factor 1/K that makes this an equality. `dr_grpo` and `reinforce` have the limit of `rloo`. `pos_only` has no surrogate:
it moves along ∇₊ alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl import plugins
from agentrl.config import advantages as rows
from agentrl.errors import AlgorithmError, PluginError

Curve = Callable[[Tensor, int], Tensor]  # (ρ float64, K) -> float64 of the same shape


def _pass_at_k(rho: Tensor, k: int) -> Tensor:
    """ρ_K = 1 - (1-ρ)^K, without cancellation at small ρ."""
    return -torch.expm1(k * torch.log1p(-rho))


def _incomplete_beta(rho: Tensor, k: int) -> Tensor:
    """B(ρ; ½, K-½) = ∫₀^ρ t^(-½) (1-t)^(K-3/2) dt for integer K ≥ 1.

    With t = sin²θ it is 2 ∫ cos^(2K-2) θ dθ, which integration by parts turns into a recursion of positive terms.
    """
    value = rho.sqrt().asin()
    for n in range(1, k):
        value = (2 * n - 1) / (2 * n) * value + rho.sqrt() * (1 - rho) ** (n - 0.5) / (2 * n)
    return 2 * value


@dataclass(frozen=True)
class Surrogate:
    """F, F′ and the group gradient's weight, each a function of (ρ, K)."""

    value: Curve | None
    slope: Curve | None
    weight: Curve


LINEAR = Surrogate(lambda r, k: r.clone(), lambda r, k: torch.ones_like(r), lambda r, k: r * (1 - r))
GRPO = Surrogate(
    lambda r, k: 2 * r.sqrt().asin(),
    lambda r, k: (r * (1 - r)).rsqrt(),
    lambda r, k: (r * (1 - r)).sqrt(),
)
POS_ONLY = Surrogate(None, None, GRPO.weight)
SKEW_R = Surrogate(
    lambda r, k: r.sqrt().asin() + (r * (1 - r)).sqrt(),
    lambda r, k: ((1 - r) / r).sqrt(),
    lambda r, k: (1 - r) * (r * (1 - r)).sqrt(),
)
RLOO_K = Surrogate(
    lambda r, k: _pass_at_k(r, k) / k,
    lambda r, k: (1 - r) ** (k - 1),
    lambda r, k: r * (1 - r) ** k,
)
GRPO_TILDE_K = Surrogate(
    # arcsin √ρ_K, exact where ρ_K is close to 1
    lambda r, k: 2 / k * torch.atan2(_pass_at_k(r, k).sqrt(), (1 - r) ** (k / 2)),
    lambda r, k: (1 - r) ** (k / 2 - 1) * _pass_at_k(r, k).rsqrt(),
    # ρ √((1-ρ_K)/ρ_K); ρ/√ρ_K tends to 0 with ρ
    lambda r, k: ((1 - r) ** (k / 2) * r / _pass_at_k(r, k).sqrt()).where(r > 0, 0.0),
)
GRPO_K = Surrogate(
    _incomplete_beta,
    lambda r, k: r.rsqrt() * (1 - r) ** (k - 1.5),
    lambda r, k: (1 - r) ** (k - 1) * (r * (1 - r)).sqrt(),
)


def surrogate_of(name: str) -> Surrogate:
    """The curves of an advantage, as its row in `agentrl.config.advantages` names them. Raises AlgorithmError."""
    try:
        target = rows.find(name).surrogate
        found = None if target is None else plugins.load(target)
    except PluginError as error:
        raise AlgorithmError(str(error)) from error
    if not isinstance(found, Surrogate):
        raise AlgorithmError(f"{name} names no surrogate reward in its row; leave it out")
    return found


def surrogate(name: str, rho: Tensor, k: int = 1) -> Tensor:
    """F(ρ), with F(0) = 0. rho: any shape, in [0, 1]; the result has its shape and floating dtype."""
    return _evaluate("value", name, rho, k)


def surrogate_slope(name: str, rho: Tensor, k: int = 1) -> Tensor:
    """F′(ρ); +inf at an end where F is vertical."""
    return _evaluate("slope", name, rho, k)


def group_gradient_weight(name: str, rho: Tensor, k: int = 1) -> Tensor:
    """The scalar in front of [∇₊ - ∇₋] in the population limit; for `pos_only` in front of ∇₊."""
    return _evaluate("weight", name, rho, k)


def _evaluate(what: str, name: str, rho: Tensor, k: int) -> Tensor:
    curve: Curve | None = getattr(surrogate_of(name), what)
    if curve is None:
        raise AlgorithmError(f"{name} has no surrogate reward: it moves along ∇₊ alone; leave it out")
    if k < 1 or k != int(k):
        raise AlgorithmError(f"k is {k}; K is a whole number of 1 or more")
    x = torch.as_tensor(rho)
    if bool(((x < 0) | (x > 1)).any()):
        raise AlgorithmError(f"rho runs from {float(x.min()):g} to {float(x.max()):g}; a success rate is in [0, 1]")
    out = curve(x.double(), int(k))
    return out.to(x.dtype if x.is_floating_point() else torch.get_default_dtype())
