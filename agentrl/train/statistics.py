"""Accuracy over several responses per question: avg@n, unbiased pass@k, intervals, paired differences. No torch.

docs/evaluation.md says how the intervals are made and what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Z = 1.959964  # of a two-sided 95 % interval
DRAWS = 2000  # of the bootstrap


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
    """A mean over n questions with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(values: Sequence[float], draws: Sequence[float] | None = None) -> Estimate:
    """Mean of per-question values (each in [0, 1]) with a 95 % interval over questions and over responses.

    draws: on how many independent trials each value rests: n responses for avg@n, n / k for pass@k; 1 where absent.

    Wilson's score interval with an effective number of trials, m = p(1 - p) / variance of the mean. The variance is
    that of the values over questions, which holds the error within questions too; where few questions happen to agree
    it is too small, and then that of all trials as if they were independent, which is the least it can be. So m is at
    most the number of trials. With one trial a question m is the number of questions, and so it is where all values
    are 0 or 1, which tells nothing about how alike the responses of one question are.
    """
    n = len(values)
    if n == 0:
        raise ValueError("there are no questions to average over")
    mean = sum(values) / n
    chance = mean * (1.0 - mean)
    trials = float(n if draws is None else sum(draws))
    if chance <= 1e-12 or trials <= n:
        return _wilson(mean, n, n)
    spread = sum((v - mean) ** 2 for v in values) / (n - 1) / n if n > 1 else 0.0
    return _wilson(mean, chance / max(spread, chance / trials), n)


def _wilson(mean: float, trials: float, n: int) -> Estimate:
    centre = (mean + Z * Z / (2 * trials)) / (1 + Z * Z / trials)
    half = Z * math.sqrt(mean * (1 - mean) / trials + Z * Z / (4 * trials * trials)) / (1 + Z * Z / trials)
    return Estimate(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)), n)


def difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean of b - a over the same questions, with a 95 % interval by the paired bootstrap over questions (fixed seed).

    Where all differences are equal the bootstrap has no width; then the questions that were asked bound what was not
    seen: a share of differing questions above w would have shown in 95 of 100 cases (Wilson's limit for 0 of n).
    """
    n = len(a)
    if n == 0 or n != len(b):
        raise ValueError(f"a paired difference needs the same questions on both sides, there are {n} and {len(b)}")
    each = [y - x for x, y in zip(a, b)]
    mean = sum(each) / n
    if max(each) - min(each) <= 1e-12:
        w = _wilson(0.0, n, n).high
        return Estimate(mean, max(-1.0, mean - w), min(1.0, mean + w), n)
    values, counts = np.unique(each, return_counts=True)  # n draws with replacement fall on them multinomially
    means = np.sort(np.random.default_rng(seed).multinomial(n, counts / n, size=DRAWS) @ values / n).tolist()
    return Estimate(mean, means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS) - 1], n)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over test sets, each weighing the same, with a 95 % interval from theirs; `n` counts all questions.

    The sets are independent: distances to the limits add in squares (Zou & Donner 2008, "MOVER", for a mean).
    """
    k, mean = len(estimates), sum(e.value for e in estimates) / len(estimates)
    below = math.sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / k
    above = math.sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / k
    return Estimate(mean, mean - below, mean + above, sum(e.n for e in estimates))


@dataclass(frozen=True)
class SuiteResult:
    """One test set: per question the number of responses that did not fail and of correct ones, in the set's order."""

    name: str
    counts: tuple[tuple[int, int], ...]  # (n, c); n is 0 where all responses of a question failed
    failed: int = 0
    samples: int = 0  # responses that were asked for per question; 0: the most that there are
    ids: tuple[str, ...] = ()  # of the questions; () where they are numbered

    @property
    def asked(self) -> int:
        """Responses per question that were asked for."""
        return self.samples or max(n for n, _ in self.counts)

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of the questions."""
        return self.ids or tuple(map(str, range(len(self.counts))))

    def on(self, kept: Sequence[str] | frozenset[str] | set[str]) -> SuiteResult:
        """The questions of `kept` alone."""
        at = [i for i, name in enumerate(self.names) if name in kept]
        counts, ids = tuple(self.counts[i] for i in at), tuple(self.names[i] for i in at)
        return SuiteResult(self.name, counts, self.failed, self.asked, ids)

    @property
    def lost(self) -> tuple[str, ...]:
        """Questions of which every response failed."""
        return tuple(name for name, (n, _) in zip(self.names, self.counts) if not n)

    def values(self, k: int = 0) -> dict[str, float]:
        """Question -> share of correct responses, or pass@k; without those that have too few responses."""
        rows = zip(self.names, self.counts)
        return {name: pass_at_k(n, c, k) if k else c / n for name, (n, c) in rows if n >= max(k, 1)}

    def average(self) -> Estimate:
        """avg@n; with one greedy response it is the accuracy."""
        return interval(list(self.values().values()), [n for n, _ in self.counts if n])

    def pass_at(self, k: int) -> Estimate:
        """Unbiased pass@k. Questions that lost responses to failed rollouts and have fewer than k are left out."""
        return interval(list(self.values(k).values()), [n / k for n, _ in self.counts if n >= k])


Rows = Mapping[str, Sequence[SuiteResult]]


@dataclass(frozen=True)
class Table:
    """What `agentrl eval` prints: cells over one set of questions per test set.

    lost: (row, test set) -> questions that this row has no response for; no row counts them.
    """

    suites: tuple[str, ...]
    sizes: dict[str, int]  # questions per test set, without those that a row has lost
    cells: dict[str, list[Estimate | None]]  # label -> one cell per test set and the average; None: not measurable
    lost: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)


def responses(suites: Sequence[SuiteResult]) -> int:
    """Responses per question that were asked for."""
    return min(s.asked for s in suites)


def common(rows: Rows) -> dict[str, list[SuiteResult]]:
    """The rows on the questions that all of them have a response for, test set by test set.

    Raises ValueError where the rows are of different test sets, or share no question of one.
    """
    names = [s.name for s in next(iter(rows.values()))]
    for method, suites in rows.items():
        if [s.name for s in suites] != names:
            raise ValueError(f"{method} was evaluated on {[s.name for s in suites]}, the first method on {names}")
    out: dict[str, list[SuiteResult]] = {method: [] for method in rows}
    for i, name in enumerate(names):
        kept = set.intersection(*({*s[i].names} - {*s[i].lost} for s in rows.values()))
        if not kept:
            raise ValueError(f"{name}: there is no question that every row has a response for")
        for method, suites in rows.items():
            out[method].append(suites[i].on(kept))
    return out


def _ks(samples: int) -> Iterator[int]:
    """2, 4, 8, ... and the number of responses itself."""
    yield from sorted({2**i for i in range(1, 12) if 2**i < samples} | {samples} - {1})


def make_table(rows: Rows, ks: Sequence[int] | None = None) -> Table:
    """avg@n of every row, and pass@k below, for each test set and their average.

    `ks` default: powers of two and the number of responses; those above the number of responses are left out.
    """
    kept = common(rows)
    suites = next(iter(kept.values()))
    cells: dict[str, list[Estimate | None]] = {}
    for method, own in kept.items():
        samples = responses(own)
        cells[method if samples == 1 else f"{method} avg@{samples}"] = _row([s.average() for s in own])
        for k in ks if ks is not None else _ks(samples):
            if 1 < k <= samples:
                at = [s.pass_at(k) if s.values(k) else None for s in own]
                cells[f"{method} pass@{k}"] = _row(at)
    lost = {(method, s.name): s.lost for method, own in rows.items() for s in own if s.lost}
    return Table(tuple(s.name for s in suites), {s.name: len(s.counts) for s in suites}, cells, lost)


def _row(cells: Sequence[Estimate | None]) -> list[Estimate | None]:
    whole = [c for c in cells if c is not None]
    return [*cells, average(whole) if len(whole) == len(cells) else None]


def differences(rows: Rows, first: str) -> dict[str, list[Estimate | None]]:
    """For each other row of the same kind the paired difference to `first`, per test set, and their average."""
    kept = common(rows)
    base = kept[first]
    out: dict[str, list[Estimate | None]] = {}
    for method, own in kept.items():
        if method == first or responses(own) != responses(base):
            continue
        cells: list[Estimate | None] = []
        for a, b in zip(base, own):
            x, y = a.values(), b.values()
            cells.append(difference([x[name] for name in x], [y[name] for name in x]))
        out[f"{method} − {first}"] = _row(cells)
    return out


def table(rows: Rows, ks: Sequence[int] | None = None, style: str = "text") -> str:
    """Methods down, suites across, their average last, as in NTHR Table 2; pass@k below. `style`: text or markdown."""
    made = make_table(rows, ks)
    return render(made.suites, made.cells, made.sizes, style)


def render(
    suites: Sequence[str],
    cells: Mapping[str, Sequence[Estimate | None]],
    sizes: Mapping[str, int],
    style: str = "text",
    head: str = "method",
) -> str:
    """A table of estimates. A cell over fewer questions than its test set has says so: `50.0 [20.1, 79.9] n=4`."""

    def text(i: int, cell: Estimate | None) -> str:
        if cell is None:
            return "–"
        whole = sizes[suites[i]] if i < len(suites) else sum(sizes.values())
        return str(cell) + (f" n={cell.n}" if cell.n != whole else "")

    top = [head, *suites, "average"]
    body = [[label, *(text(i, c) for i, c in enumerate(row))] for label, row in cells.items()]
    if style == "markdown":
        lines = ["| " + " | ".join(top) + " |", "|" + "---|" * len(top)]
        return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in body])
    width = [max(len(r[i]) for r in [top, *body]) for i in range(len(top))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, width)).rstrip() for r in [top, *body])


def to_json(rows: Rows, ks: Sequence[int] | None = None) -> dict[str, object]:
    """The same as plain JSON, shares in [0, 1]: per method `suites`, `averages` over them, and `average` of avg@n."""
    out: dict[str, object] = {}
    for method, suites in common(rows).items():
        samples = responses(suites)
        kinds = [k for k in (ks if ks is not None else _ks(samples)) if 1 < k <= samples]
        per, over = {}, {"avg": vars(average([s.average() for s in suites]))}
        for s in suites:
            values: dict[str, object] = {"avg": vars(s.average()), "questions": len(s.counts), "failed": s.failed}
            values |= {f"pass@{k}": vars(s.pass_at(k)) if s.values(k) else None for k in kinds}
            per[s.name] = values
        for k in kinds:
            if all(s.values(k) for s in suites):
                over[f"pass@{k}"] = vars(average([s.pass_at(k) for s in suites]))
        out[method] = {"suites": per, "averages": over, "average": over["avg"]["value"]}
    return out
