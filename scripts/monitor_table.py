"""How early the collapse rule warns, and how often for nothing: a table over recorded runs.

    python scripts/monitor_table.py                    # shipped thresholds, and leave-one-run-out
    python scripts/monitor_table.py --no-loo --only reward,entropy   # fewer signals
    python scripts/monitor_table.py --source new       # only the runs made after the rules were fixed
    python scripts/monitor_table.py --logs FOLDER --labels labels.json   # other people's runs (`real_table`)
    python scripts/monitor_table.py --runs my_runs     # a folder of CSV files with canonical column names

Half-fall: the first step at which the 5-step mean reward is below half its running peak (peak above 0.15) and stays
there in the median of the next ten steps. Lead: steps from the first warning to the half-fall. Kinds follow from the
settings and the outcome, never from the alarms: `fell` has a half-fall; `low` never had a mean reward above 0.15, so
that there was nothing to lose; `harsh` has neither but makes eight or more updates per batch; `healthy` is the rest.

Leave-one-run-out: for each run the update-size, entropy and degradation thresholds are chosen anew on all other runs
(fewest false warnings on healthy runs, then most half-falls warned of, then the middle of what ties), and the run is
judged with those. Runs come from one family of tasks and models, and which kinds of evidence there are was decided with
the runs in view, so this measures how thresholds overfit to runs, and neither of those.
The baseline is a CUSUM of the log entropy, its two parameters chosen in the same way.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agentrl.monitors import Monitor, StepRecord, Thresholds
from agentrl.monitors.collapse import EVIDENCE, Collapse

DATA = Path(__file__).resolve().parent.parent / "tests" / "monitors" / "data"
SIZES = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05)  # clip_share; delta_size is moved with it
RISES = (2.0, 4.0, 8.0, 16.0)  # rise_limit
DEGRADATION = (3.5, 4.5)
DRIFT = (0.0, 0.25, 0.5, 1.0)  # of the baseline: standard deviations per step that are forgiven
LIMITS = (2.0, 3.0, 4.0, 8.0, 12.0)  # and that must add up
PEAK = 0.15  # a reward that was never higher cannot halve

Grid = tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One recorded run."""

    name: str
    records: tuple[StepRecord, ...]
    half_fall: int | None
    kind: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What the rule did on one run."""

    warn: int | None
    critical: int | None


def half_fall(reward: list[float], smooth: int = 5) -> int | None:
    """Index of the half-fall in a list of per-step rewards, or None."""
    means = [sum(reward[i : i + smooth]) / smooth for i in range(len(reward) - smooth + 1)]
    for t, mean in enumerate(means):
        peak = max(means[: t + 1])
        if peak > PEAK and mean < peak / 2 and statistics.median(means[t : t + 10]) < peak / 2:
            return t + smooth - 1
    return None


def best(reward: list[float], smooth: int = 5) -> float:
    """The highest rolling mean."""
    return max(sum(reward[i : i + smooth]) / smooth for i in range(max(1, len(reward) - smooth + 1)))


def load(folder: Path, only: set[str] | None = None, source: str | None = None) -> list[Run]:
    """All runs of a folder; `only` keeps these signals, `source` those runs."""
    index_file = folder / "runs.json"
    index = json.loads(index_file.read_text()) if index_file.exists() else {}
    runs = []
    for file in sorted(folder.glob("*.csv")):
        with open(file, newline="") as handle:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
        settings = index.get(file.stem, {})
        if source is not None and settings.get("source") != source:
            continue
        reward = [row["reward"] for row in rows]
        fall = half_fall(reward)
        many = settings.get("mini_batches", 1) * settings.get("epochs", 1) >= 8
        low = best(reward) <= PEAK
        kind = "fell" if fall is not None else "low" if low else "harsh" if many else "healthy"
        records = tuple(
            StepRecord(i, {k: v for k, v in row.items() if k != "step" and (only is None or k in only)})
            for i, row in enumerate(rows)
        )
        runs.append(Run(file.stem, records, fall, kind, settings.get("source", "")))
    return runs


def judge(run: Run, thresholds: Thresholds, evidence: tuple[str, ...] = EVIDENCE) -> Outcome:
    """First warning (or worse) and first critical alarm of the collapse rule."""
    monitor = Monitor(thresholds, rules=[Collapse(evidence)])
    warn = critical = None
    for record in run.records:
        for alarm in monitor.observe(record):
            warn = record.step if warn is None else warn
            critical = record.step if critical is None and alarm.level == "critical" else critical
    return Outcome(warn, critical)


def entropy_cusum(run: Run, drift: float, limit: float) -> Outcome:
    """The baseline: log entropy above the mean of the first ten steps, in their standard deviations, summed up."""
    values = [math.log(max(r.metrics["entropy"], 1e-4)) for r in run.records if "entropy" in r.metrics]
    if len(values) < 12:
        return Outcome(None, None)
    centre, spread, total = statistics.mean(values[:10]), max(statistics.stdev(values[:10]), 0.02), 0.0
    for step, value in enumerate(values[10:], 10):
        total = max(0.0, total + (value - centre) / spread - drift)
        if total > limit:
            return Outcome(step, None)
    return Outcome(None, None)


def lead(run: Run, step: int | None) -> int | None:
    """Steps from `step` to the half-fall; None where there is no such thing."""
    return None if step is None or run.half_fall is None else run.half_fall - step


def variants() -> dict[Grid, Callable[[Run], Outcome]]:
    """The grid of leave-one-run-out."""
    base = Thresholds()
    ratio = base.collapse.delta_size / base.collapse.clip_share
    return {
        (s, r, d): partial(
            judge,
            thresholds=base.changed({"clip_share": s, "delta_size": s * ratio, "rise_limit": r, "degradation_z": d}),
        )
        for s in SIZES
        for r in RISES
        for d in DEGRADATION
    }


def baselines() -> dict[Grid, Callable[[Run], Outcome]]:
    """The same for the baseline."""
    return {(k, h): partial(entropy_cusum, drift=k, limit=h) for k in DRIFT for h in LIMITS}


def choose(runs: list[Run], outcomes: dict[tuple[str, Grid], Outcome], grid: list[Grid]) -> Grid:
    """The grid point for these runs: fewest false warnings, most half-falls warned of, the middle of what ties."""
    scores = {}
    for key in grid:
        healthy = [r for r in runs if r.kind == "healthy"]
        false = sum(outcomes[r.name, key].warn is not None for r in healthy)
        early = sum((lead(r, outcomes[r.name, key].warn) or 0) > 0 for r in runs if r.kind == "fell")
        scores[key] = (-false, early)
    ties = [key for key in grid if scores[key] == max(scores.values())]
    for axis in range(len(grid[0])):
        values = sorted({key[axis] for key in ties})
        middle = values[(len(values) - 1) // 2]
        ties = [key for key in ties if key[axis] == middle]
    return ties[0]


def leave_one_out(runs: list[Run], grid: dict[Grid, Callable[[Run], Outcome]]) -> dict[str, tuple[Grid, Outcome]]:
    """Run name -> the grid point chosen without it, and what that did on it."""
    outcomes = {(run.name, key): rule(run) for run in runs for key, rule in grid.items()}
    result = {}
    for run in runs:
        key = choose([r for r in runs if r.name != run.name], outcomes, list(grid))
        result[run.name] = (key, outcomes[run.name, key])
    return result


def summary(runs: list[Run], outcomes: dict[str, Outcome]) -> list[str]:
    """The figures that count, one line per kind."""
    fell = [r for r in runs if r.kind == "fell"]
    after = [r for r in fell if r.half_fall is not None and r.half_fall >= Thresholds().raising.warmup]
    leads = [lead(r, outcomes[r.name].warn) or 0 for r in after]
    critical = [lead(r, outcomes[r.name].critical) for r in after]
    lines = [
        f"half-falls after the warm-up: {len(after)}, warned of before: {sum(x > 0 for x in leads)}, "
        f"median lead {statistics.median(leads) if leads else float('nan'):g} steps "
        f"(at least 20 steps: {sum(x >= 20 for x in leads)}); "
        f"critical before or at the fall: {sum(x is not None and x >= 0 for x in critical)}",
    ]
    for kind in ("healthy", "harsh", "low"):
        these = [outcomes[r.name] for r in runs if r.kind == kind]
        if not these:
            continue
        lines.append(
            f"{kind}: {len(these)} runs, {sum(o.warn is not None for o in these)} warned, "
            f"{sum(o.critical is not None for o in these)} critical"
        )
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=DATA)
    parser.add_argument("--only", help="comma-separated signals to keep")
    parser.add_argument("--source", help="only runs of this source in runs.json: shared, own, new, unseen")
    parser.add_argument("--no-loo", action="store_true", help="skip leave-one-run-out")
    parser.add_argument("--logs", type=Path, help="other people's runs, JSONL, with --labels")
    parser.add_argument("--labels", type=Path, help="what happened in them")
    parser.add_argument("--authors", action="store_true", help="and leave-one-author-out, with --logs")
    args = parser.parse_args()
    if args.logs and args.labels:
        import real_table

        real_table.main(args.logs, args.labels, args.authors)
        return
    runs = load(args.runs, set(args.only.split(",")) if args.only else None, args.source)
    shipped = {run.name: judge(run, Thresholds()) for run in runs}
    parts = {name: {run.name: judge(run, Thresholds(), (name,)) for run in runs} for name in EVIDENCE}
    loo = {} if args.no_loo else leave_one_out(runs, variants())
    baseline = {} if args.no_loo else leave_one_out(runs, baselines())

    print(
        "| run | kind | half-fall | warn | lead | critical | "
        + " | ".join(EVIDENCE)
        + (" | LOO lead |" if loo else " |")
    )
    print("|---" * (6 + len(EVIDENCE) + bool(loo)) + "|")
    order = {"healthy": 0, "harsh": 1, "low": 2, "fell": 3}
    for run in sorted(runs, key=lambda r: (order[r.kind], r.name)):
        one = shipped[run.name]
        cells = [run.name, run.kind, run.half_fall, one.warn, lead(run, one.warn), one.critical]
        cells += [parts[name][run.name].warn for name in EVIDENCE]
        if loo:
            held_out = loo[run.name][1].warn
            cells.append(lead(run, held_out) if run.kind == "fell" else held_out)
        print("| " + " | ".join("–" if c is None else str(c) for c in cells) + " |")
    print("\n(a cell under an evidence's name is the step at which it alone would have warned)")
    print("\nShipped thresholds\n  " + "\n  ".join(summary(runs, shipped)))
    for source in sorted({r.source for r in runs} - {""}):
        these = [r for r in runs if r.source == source]
        print(f"Shipped thresholds, source {source}\n  " + "\n  ".join(summary(these, shipped)))
    for name in EVIDENCE:
        print(f"{name} alone\n  " + "\n  ".join(summary(runs, parts[name])))
    if loo:
        print("Leave-one-run-out\n  " + "\n  ".join(summary(runs, {k: v[1] for k, v in loo.items()})))
        print(f"  thresholds chosen: {sorted({v[0] for v in loo.values()})}")
        print("Entropy CUSUM, leave-one-run-out\n  ", end="")
        print("\n  ".join(summary(runs, {k: v[1] for k, v in baseline.items()})))
        print(f"  drift and limit chosen: {sorted({v[0] for v in baseline.values()})}")


if __name__ == "__main__":
    main()
