"""Accuracy over several responses per question: avg@n, unbiased pass@k, confidence intervals. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k responses is correct; c of n are (Chen et al. 2021, Eq. 1).

    1 - C(n - c, k) / C(n, k): the mean over all draws of k without replacement, so it is unbiased.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} responses per question, there are {n}; raise eval.samples")
    if not 0 <= c <= n:
        raise ValueError(f"{c} correct of {n} responses is impossible")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean of per-question values (each in [0, 1]) with a 95 % interval.

    Binary values: Wilson's score interval, which is honest at 0 and 1 and for few questions. Others: the percentile
    bootstrap over questions with a fixed seed.
    """
    n = len(values)
    if n == 0:
        raise ValueError("there are no questions to average over")
    mean = sum(values) / n
    if set(values) <= {0.0, 1.0}:
        z = 1.959964
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half), n)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return Estimate(mean, means[int(0.025 * draws)], means[int(0.975 * draws) - 1], n)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over test sets, each weighing the same, with a 95 % interval from theirs; `n` counts all questions.

    The sets are independent: distances to the limits add in squares (Zou & Donner 2008, "MOVER", for a mean).
    """
    k, mean = len(estimates), sum(e.value for e in estimates) / len(estimates)
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / k
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / k
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above), sum(e.n for e in estimates))


@dataclass(frozen=True)
class SuiteResult:
    """One test set: per question the number of responses and of correct ones."""

    name: str
    counts: tuple[tuple[int, int], ...]  # (n, c)
    failed: int = 0

    def average(self) -> Estimate:
        """avg@n; with one greedy response it is the accuracy."""
        return interval([c / n for n, c in self.counts])

    def pass_at(self, k: int) -> Estimate:
        """Unbiased pass@k. Questions that lost responses to failed rollouts and have fewer than k are left out."""
        return interval([pass_at_k(n, c, k) for n, c in self.counts if n >= k])


def responses(suites: Sequence[SuiteResult]) -> int:
    """Responses per question: the largest number that every suite has for at least one question."""
    return min(max(n for n, _ in s.counts) for s in suites)


def table(rows: Mapping[str, Sequence[SuiteResult]], ks: Sequence[int], style: str = "text") -> str:
    """Methods down, suites across, their average last, as in NTHR Table 2; pass@k below. `style`: text or markdown.

    Every method must have the same suites; pass@k is left out where a method has fewer than k responses per question.
    """
    names = [s.name for s in next(iter(rows.values()))]
    for method, suites in rows.items():
        if [s.name for s in suites] != names:
            raise ValueError(f"{method} was evaluated on {[s.name for s in suites]}, the first method on {names}")
    head = ["method", *names, "average"]
    body: list[list[str]] = []
    for method, suites in rows.items():
        values = [s.average() for s in suites]
        samples = responses(suites)
        label = method if samples == 1 else f"{method} avg@{samples}"
        body.append([label, *map(str, values), str(average(values))])
        for k in ks:
            if 1 < k <= samples:
                at = [s.pass_at(k) for s in suites]
                body.append([f"{method} pass@{k}", *map(str, at), str(average(at))])
    if style == "markdown":
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in body])
    width = [max(len(r[i]) for r in [head, *body]) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, width)).rstrip() for r in [head, *body])


def to_json(rows: Mapping[str, Sequence[SuiteResult]], ks: Sequence[int]) -> dict[str, object]:
    """The same as plain JSON, shares in [0, 1]: per method `suites`, `averages` over them, and `average` of avg@n."""
    out: dict[str, object] = {}
    for method, suites in rows.items():
        per = {}
        for s in suites:
            values: dict[str, object] = {"avg": vars(s.average()), "questions": len(s.counts), "failed": s.failed}
            values |= {f"pass@{k}": vars(s.pass_at(k)) for k in ks if 1 < k <= responses(suites)}
            per[s.name] = values
        over = {"avg": vars(average([s.average() for s in suites]))}
        over |= {f"pass@{k}": vars(average([s.pass_at(k) for s in suites])) for k in ks if 1 < k <= responses(suites)}
        out[method] = {"suites": per, "averages": over, "average": over["avg"]["value"]}
    return out
