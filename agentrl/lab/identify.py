"""`lab identify`: does GWHES find the questions whose correct responses lose likelihood (NTHR Table 1)?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentrl.config import NTHRConfig
from agentrl.lab.groups import Group, Step, delta_of, displacement
from agentrl.lab.methods import method_config
from agentrl.train.build import Job


@dataclass
class IdentifyResult:
    """GWHES and Δ(x) of GRPO per question, and how well the first finds the lowest of the second."""

    questions: list[str]
    gwhes: list[float]
    delta: list[float]  # per response, nats
    top: int
    overlap: int  # of the `top` highest GWHES with the `top` lowest Δ
    expected: float  # of a random choice
    rank_correlation: float  # Spearman, GWHES against -Δ

    def text(self) -> str:
        """One line."""
        return (
            f"top-{self.top} overlap of GWHES with the lowest Δ(x): {self.overlap}/{self.top} (random: "
            f"{self.expected:.1f}); Spearman of GWHES and -Δ: {self.rank_correlation:+.2f}, {len(self.delta)} questions"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return vars(self)


def run_identify(
    job: Job,
    groups: Sequence[Group],
    *,
    top: int = 10,
    step: Step | None = None,
    say: Callable[[str], None] = print,
) -> IdentifyResult:
    """GWHES from the scoring pass, against Δ(x) of one GRPO update per question from the same weights."""
    algorithm = method_config(job.config.algorithm, "grpo")
    temperature = job.config.rollout.temperature
    gwhes, delta = [], []
    for k, group in enumerate(groups):
        scored = job.engine.score(group.batch, temperature=temperature, nthr=NTHRConfig(enabled=True, method="exact"))
        assert scored.gwhes is not None
        gwhes.append(float(next(iter(scored.gwhes.values()))))
        old, new = displacement(job.local, group.batch, algorithm, step=step, temperature=temperature)
        delta.append(delta_of(group.batch, old, new)[1])
        if (k + 1) % 10 == 0:
            say(f"{k + 1} of {len(groups)} questions")
    n = len(groups)
    top = min(top, n)
    highest = set(sorted(range(n), key=lambda i: -gwhes[i])[:top])
    lowest = set(sorted(range(n), key=lambda i: delta[i])[:top])
    return IdentifyResult(
        [str(g.task.options.get("question", g.task.id)) for g in groups],
        gwhes,
        delta,
        top,
        len(highest & lowest),
        top * top / n,
        spearman(gwhes, [-d for d in delta]),
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side is constant or there are fewer than 3 pairs."""
    if len(a) < 3:
        return math.nan
    x, y = (_ranks(torch.tensor(v, dtype=torch.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else math.nan


def _ranks(v: torch.Tensor) -> torch.Tensor:
    less = (v[None] < v[:, None]).sum(1)
    same = (v[None] == v[:, None]).sum(1)
    return less + (same + 1).double() / 2
