"""`lab delta`: how one update moves the likelihood of correct responses, per question and method (NTHR Fig. 1, 4).

The same rollouts serve every method, and the weights are put back before each update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from agentrl.lab.groups import Group, Step, delta_of, displacement
from agentrl.lab.methods import method_config
from agentrl.lab.plots import figure, save
from agentrl.train.build import Job

FIRST_UPDATE_ZERO = ("llds", "llds_ma")


@dataclass
class DeltaResult:
    """Δ(x) per method and question, nats."""

    questions: list[str]
    share_correct: list[float]
    per_token: dict[str, list[float]]
    per_response: dict[str, list[float]]
    updates: int
    optimizer: str
    lr: float

    def above(self, method: str, other: str) -> tuple[int, int]:
        """On how many questions Δ(x) of `method` is larger than that of `other`, and on how many it differs."""
        pairs = list(zip(self.per_response[method], self.per_response[other]))
        return sum(a > b for a, b in pairs), sum(a != b for a, b in pairs)

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: Δ per response (mean, median, lowest) and per token, share of Δ ≤ 0, and wins.

        Wins over the first method, and over `random` where it takes part: questions with a larger Δ, of those where Δ
        differs at all.
        """
        rivals = list(dict.fromkeys((next(iter(self.per_response)), *({"random"} & self.per_response.keys()))))
        header = ("method", "mean Δ / response", "median", "lowest", "mean Δ / token", "share Δ ≤ 0")
        rows: list[tuple[str, ...]] = [(*header, *(f"above {r}" for r in rivals))]
        for m, values in self.per_response.items():
            low = sum(v <= 0 for v in values) / len(values)
            wins = ("–" if m == r else "{} of {}".format(*self.above(m, r)) for r in rivals)
            shown = (f"{v:+.4f}" for v in (mean(values), median(values), min(values)))
            rows.append((m, *shown, f"{mean(self.per_token[m]):+.5f}", f"{low:.2f}", *wins))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return vars(self)


def run_delta(
    job: Job,
    groups: Sequence[Group],
    methods: Sequence[str],
    *,
    step: Step | None = None,
    updates: int = 1,
    say: Callable[[str], None] = print,
) -> DeltaResult:
    """One (or `updates`) full-batch updates per question and method, each from the same weights.

    Raises ConfigError for methods that do not exist.
    """
    step = step or Step()
    algorithms = {m: method_config(job.config.algorithm, m) for m in methods}
    if updates == 1 and any(m in FIRST_UPDATE_ZERO for m in methods):
        say("llds is zero on the first update of a batch: its bars equal grpo's; use --updates 2 or more")
    per_token: dict[str, list[float]] = {m: [] for m in algorithms}
    per_response: dict[str, list[float]] = {m: [] for m in algorithms}
    temperature = job.config.rollout.temperature
    for k, group in enumerate(groups):
        for m, algorithm in algorithms.items():
            old, new = displacement(
                job.local, group.batch, group.algorithm(algorithm), step=step, updates=updates, temperature=temperature
            )
            token, response = delta_of(group.batch, old, new)
            per_token[m].append(token)
            per_response[m].append(response)
        if (k + 1) % 10 == 0:
            say(f"{k + 1} of {len(groups)} questions")
    questions = [str(g.task.options.get("question", g.task.id)) for g in groups]
    shares = [g.share_correct for g in groups]
    lr = step.rate(job.config.optim)
    return DeltaResult(questions, shares, per_token, per_response, updates, step.optimizer, lr)


def plot_delta(result: DeltaResult, out: Path) -> list[Path]:
    """The sorted bar figure: one panel per method, questions in the order of the first method's Δ.

    The axis is linear for the smaller half of all bars and logarithmic beyond, because a few questions may move by
    much more than the others.
    """
    methods = list(result.per_response)
    order = sorted(range(len(result.questions)), key=lambda i: result.per_response[methods[0]][i])
    linear = median(abs(v) for values in result.per_response.values() for v in values) or 1.0
    written = []
    for theme in ("light", "dark"):
        fig, axes, colors = figure(theme, 1, len(methods), size=(2.5 * len(methods) + 0.8, 3.0), sharey=True)
        for ax, m in zip(axes, methods):
            values = [result.per_response[m][i] for i in order]
            shades = [colors["bad"] if v <= 0 else colors["good"] for v in values]
            ax.bar(range(len(values)), values, width=0.9, color=shades)
            ax.axhline(0, color=colors["fg"], lw=0.8)
            ax.set_yscale("symlog", linthresh=linear)
            low = sum(v <= 0 for v in values)
            title = f"{m}\nmedian {median(values):+.3f}, {low} of {len(values)} fall"
            ax.set_title(title, fontsize=9, color=colors["fg"], loc="left")
            ax.set_xlabel(f"question, by Δ of {methods[0]}", color=colors["fg"], fontsize=9)
        _ticks(axes[0], [v for values in result.per_response.values() for v in values], linear)
        axes[0].set_ylabel("Δ(x), nats per response", color=colors["fg"], fontsize=9)
        written += save(fig, out, theme)
    return written


def _ticks(ax: Any, values: Sequence[float], linear: float) -> None:
    """Zero and powers of ten on both sides, as plain numbers; none so close to zero that they would overlap with it."""
    reach = max(abs(v) for v in values) or 1.0
    last = math.floor(math.log10(max(reach, linear)))
    first = min(math.ceil(math.log10(linear)), last)
    powers = [10.0**k for k in range(first, last + 1)]
    ticks = [-p for p in powers[::-1]] + [0.0, *powers]
    ax.set_yticks(ticks, [f"{t:+g}" if t else "0" for t in ticks], minor=False)
    ax.minorticks_off()
