"""How the shipped rules do on other people's runs, by responses a row and by author.

    python scripts/monitor_table.py --logs FOLDER --labels labels.json [--authors]

FOLDER has one JSONL a run in its trainer's own names; labels.json says of each what happened (kind, fell_row,
responses_per_row, trainer). A warning is a warn or critical of collapse, death_spiral, non_finite or truncation, a
critical one of collapse or death_spiral. `--authors`: the thresholds of GRID are chosen anew without each author.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.monitors import Monitor, StepRecord, Thresholds, guess_mapping

WARNING = {"collapse", "death_spiral", "non_finite", "truncation"}
CRITICAL = {"collapse", "death_spiral"}
MANY = 40  # responses a row; where they are not known a run counts as one with fewer
GRID: dict[str, tuple[float, ...]] = {
    "decline_z": (3.0, 3.5, 4.0),
    "collapse_lost": (0.4, 0.45),
    "gate_share": (0.1, 0.2),
    "crash_kept": (0.3, 0.4, 0.5),
}


@dataclass(frozen=True)
class RealRun:
    """One run of somebody."""

    name: str
    author: str
    label: dict[str, Any]
    records: tuple[StepRecord, ...]
    clipped_in_loss: bool

    @property
    def many(self) -> bool:
        """Whether a row has many responses."""
        return (self.label.get("responses_per_row") or 0) >= MANY


Judged = tuple[int | None, int | None]  # rows of the first warning and of the first critical


def load(logs: Path, labels: Path) -> list[RealRun]:
    """All labelled runs."""
    out = []
    for name, label in sorted(json.loads(labels.read_text()).items()):
        rows = [json.loads(line) for line in (logs / f"{name}.jsonl").read_text().splitlines()]
        mapping = guess_mapping({k for row in rows for k in row})
        values = [mapping.apply({k: float(v) for k, v in r.items() if isinstance(v, int | float)}) for r in rows]
        author = f"{name.rsplit('-', 1)[0]} / {label['trainer']}"
        records = tuple(StepRecord(i, v) for i, v in enumerate(values))
        out.append(RealRun(name, author, label, records, mapping.clipped_in_loss))
    return out


def judge(run: RealRun, thresholds: Thresholds) -> Judged:
    """First warning and first critical alarm of all rules."""
    monitor = Monitor(thresholds)
    monitor.clipped_in_loss = run.clipped_in_loss
    warn = critical = None
    for record in run.records:
        for alarm in monitor.observe(record):
            if warn is None and alarm.rule in WARNING and alarm.level != "info":
                warn = record.step
            if critical is None and alarm.rule in CRITICAL and alarm.level == "critical":
                critical = record.step
    return warn, critical


def counts(runs: Iterable[RealRun], judged: dict[str, Judged]) -> dict[str, int]:
    """What the table has."""
    out = dict.fromkeys(("falls", "in_time", "critical_4", "healthy", "warned", "critical", "other", "other_warned"), 0)
    for run in runs:
        (warn, critical), fell = judged[run.name], run.label["fell_row"]
        if run.label["kind"] == "fell":
            out["falls"] += 1
            out["in_time"] += warn is not None and warn <= fell
            out["critical_4"] += critical is not None and critical <= fell + 4
        elif run.label["kind"] == "healthy":
            out["healthy"] += 1
            out["warned"] += warn is not None
            out["critical"] += critical is not None
        else:
            out["other"] += 1
            out["other_warned"] += warn is not None
    return out


def lines(runs: list[RealRun], judged: dict[str, Judged]) -> list[str]:
    """The tables."""
    out = []
    groups = [
        ("40 or more responses", [r for r in runs if r.many]),
        ("fewer or unknown", [r for r in runs if not r.many]),
    ]
    groups += [(author, [r for r in runs if r.author == author]) for author in sorted({r.author for r in runs})]
    for name, these in groups:
        c = counts(these, judged)
        out.append(
            f"{name}: falls warned of in time {c['in_time']} of {c['falls']}, critical at most 4 rows after "
            f"{c['critical_4']}; healthy warned {c['warned']}, critical {c['critical']} of {c['healthy']}; dips and "
            f"noise warned {c['other_warned']} of {c['other']}"
        )
    return out


def score(c: dict[str, int]) -> int:
    """What a setting is chosen by."""
    return c["in_time"] + c["critical_4"] - c["warned"] - 3 * c["critical"]


def leave_one_author_out(runs: list[RealRun]) -> tuple[dict[str, dict[str, float]], dict[str, Judged]]:
    """Author -> the setting chosen on all others (the shipped one where it ties), and what each did on its author."""
    shipped = tuple(getattr(Thresholds().collapse, name) for name in GRID)
    settings = sorted(itertools.product(*GRID.values()), key=lambda s: s != shipped)
    every = {
        s: {r.name: judge(r, Thresholds().changed({f"collapse.{k}": v for k, v in zip(GRID, s)})) for r in runs}
        for s in settings
    }
    chosen, judged = {}, {}
    for author in sorted({r.author for r in runs}):
        others = [r for r in runs if r.author != author]
        best = max(settings, key=lambda s: score(counts(others, every[s])))
        chosen[author] = dict(zip(GRID, best))
        judged |= {r.name: every[best][r.name] for r in runs if r.author == author}
    return chosen, judged


def main(logs: Path, labels: Path, authors: bool) -> None:
    """Print the tables."""
    runs = load(logs, labels)
    print("\n".join(lines(runs, {r.name: judge(r, Thresholds()) for r in runs})))
    if authors:
        chosen, judged = leave_one_author_out(runs)
        print("\nLeave-one-author-out")
        print("\n".join(lines(runs, judged)[:2]))
        for author, setting in chosen.items():
            print(f"  without {author}: {setting}")
