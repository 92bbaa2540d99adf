"""`plot surrogates`: what each advantage maximises, and how strongly it pulls, over the success rate ρ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agentrl import plugins
from agentrl.algorithms.surrogate import group_gradient_weight, surrogate, surrogate_of
from agentrl.config import advantages
from agentrl.errors import ConfigError
from agentrl.lab.plots import SERIES, figure, legend, save


def plot_surrogates(names: Sequence[str] | None, k: int, out: Path) -> list[Path]:
    """Two panels: the surrogate reward F(ρ) scaled to F(1) = 1 beside the 0/1 reward and pass@K, and the group
    gradient's weight. Names without a surrogate (`pos_only`) are drawn in the second panel only."""
    chosen = list(names or _different())
    for name in chosen:
        if problem := plugins.problem_with("advantage", name):
            raise ConfigError([problem])
    if k < 1:
        raise ConfigError([f"k is {k}: pass@K needs 1 or more"])
    rho = torch.linspace(0, 1, 401, dtype=torch.float64)
    written = []
    for theme in ("light", "dark"):
        fig, (left, right), colors = figure(theme, 1, 2, size=(10.4, 3.6))
        pass_at_k = 1 - (1 - rho) ** k
        left.plot(rho, rho, color=colors["fg"], lw=1.0, ls=":", label="reward (0/1)", zorder=5)
        if k > 1:
            left.plot(rho, pass_at_k, color=colors["fg"], lw=1.0, ls="--", label=f"pass@{k}", zorder=5)
        values: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        for i, name in enumerate(chosen):
            color = SERIES[theme][i % len(SERIES[theme])]
            if surrogate_of(name).value is not None:
                value = surrogate(name, rho, k)
                _draw(left, rho, value / value[-1], values, color=color, label=name)
            _draw(right, rho, group_gradient_weight(name, rho, k), weights, color=color, label=name)
        left.set_title("surrogate reward F(ρ), scaled to F(1) = 1", fontsize=10, loc="left", color=colors["fg"])
        right.set_title("weight of the group gradient", fontsize=10, loc="left", color=colors["fg"])
        for ax in (left, right):
            ax.set_xlabel("success rate ρ", color=colors["fg"])
        legend(left, colors, loc="lower right")
        legend(right, colors, loc="center left", bbox_to_anchor=(1.0, 0.5))
        written += save(fig, out, theme)
    return written


def _different() -> list[str]:
    """The built-in advantages, of several with the same curves (rloo, dr_grpo, reinforce) the first."""
    first: dict[str | None, str] = {}
    for name, row in advantages.built_in().items():
        first.setdefault(row.surrogate, name)
    return list(first.values())


def _draw(ax: Any, rho: torch.Tensor, curve: torch.Tensor, drawn: list[torch.Tensor], **style: Any) -> None:
    """A line; dashed where it lies on one that is drawn already, so that both are seen."""
    same = sum(torch.allclose(curve, other, atol=1e-3) for other in drawn)
    drawn.append(curve)
    ax.plot(rho, curve, lw=1.8, ls=("-", (0, (5, 5)), (0, (2, 8)))[min(same, 2)], **style)
