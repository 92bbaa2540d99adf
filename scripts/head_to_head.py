"""The collapse rule beside other monitors and two plain rules, on the same rows.

    python scripts/head_to_head.py export --logs FOLDER --labels labels.json --out rows.jsonl
    ENV_OF_A_TOOL/bin/python scripts/head_to_head.py replay rlwatch rows.jsonl alarms.jsonl   (or rldoctor, rlprobe)
    python scripts/head_to_head.py table rows.jsonl alarms_*.jsonl

`export` maps each run's columns once, so that every monitor sees the same numbers; `replay` feeds them row by row to
one tool in an environment of its own and writes its first warning and critical row for each of its detectors; `table`
adds agentrl, an entropy CUSUM and a plain reward drop. "Best setting": of all its detectors and both levels the choice
that warns of most falls with at most 8 % of the healthy runs warned, or else has the fewest healthy runs warned; chosen
on the same runs, so an upper bound. For rldoctor also a check every 4 rows from the eighth on (its default is every 25
rows from the sixtieth on).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LEVELS = ("warn", "critical")
FIELDS = ("reward", "reward_group_std", "entropy", "kl", "loss", "grad_norm", "clip_fraction", "response_length")
FIELDS += ("truncated_share", "groups_equal", "lr", "t_step_s", "t_rollout_s", "turns", "mismatch", "kl_sampler")
FIELDS += ("validation", "valid_action_ratio", "correct_rate", "tool_timeouts")


def export(logs: Path, labels: Path, out: Path) -> None:
    """One line per run: name, label, rows of canonical signals."""
    from agentrl.monitors import guess_mapping

    index = json.loads(labels.read_text())
    with open(out, "w") as handle:
        for name, label in sorted(index.items()):
            rows = [json.loads(line) for line in (logs / f"{name}.jsonl").read_text().splitlines()]
            mapping = guess_mapping({k for row in rows for k in row})
            values = [mapping.apply({k: float(v) for k, v in r.items() if isinstance(v, int | float)}) for r in rows]
            kept = [{k: v for k, v in row.items() if k in FIELDS} for row in values]
            handle.write(
                json.dumps({"name": name, "label": label, "loss": mapping.clipped_in_loss, "rows": kept}) + "\n"
            )


def runs_of(file: Path) -> Iterator[dict[str, Any]]:
    """What `export` wrote."""
    for line in file.read_text().splitlines():
        yield json.loads(line)


Found = dict[str, dict[str, int]]  # detector -> level -> first row


def _note(found: Found, detector: str, level: str, row: int) -> None:
    found.setdefault(detector, {}).setdefault(level, row)


def rlwatch(rows: list[dict[str, float]]) -> Iterator[tuple[str, Found]]:
    """Its detector suite, fed as `log_step` feeds it."""
    from rlwatch.config import RLWatchConfig
    from rlwatch.detectors import DetectorSuite

    suite, found = DetectorSuite(RLWatchConfig()), {}
    for i, r in enumerate(rows):
        alerts = suite.check_step(
            i, entropy=r.get("entropy"), kl_divergence=r.get("kl"), reward_mean=r.get("reward"),
            reward_std=r.get("reward_group_std"), loss=r.get("loss"), grad_norm=r.get("grad_norm"),
        )  # fmt: skip
        for a in alerts:
            _note(found, a.detector, "critical" if a.severity == "critical" else "warn", i)
    yield "defaults", found


def rldoctor(rows: list[dict[str, float]]) -> Iterator[tuple[str, Found]]:
    """Its live monitor, at its defaults and asked every fourth row from the eighth on."""
    from rl_doctor.detectors.base import Severity
    from rl_doctor.live import LiveMonitor

    names = {"reward": "reward", "reward_group_std": "reward_std", "entropy": "entropy", "kl": "kl", "loss": "loss"}
    names |= {"grad_norm": "grad_norm", "clip_fraction": "clip_fraction", "response_length": "response_length"}
    names |= {"truncated_share": "truncation_rate", "groups_equal": "frac_reward_zero_std", "lr": "learning_rate"}
    for setting, options in (("defaults", {}), ("every 4 rows", {"check_every": 4, "min_steps": 8})):
        found: Found = {}
        monitor = LiveMonitor(on_finding=lambda finding: None, **options)
        for i, r in enumerate(rows):
            for f in monitor.log({names[k]: v for k, v in r.items() if k in names}, step=i):
                _note(found, f.detector, "critical" if f.severity >= Severity.CRITICAL else "warn", i)
        yield setting, found


def rlprobe(rows: list[dict[str, float]]) -> Iterator[tuple[str, Found]]:
    """Its doctor over the rows so far, every second row, as its watcher asks it; info findings are left out."""
    from rlprobe.doctor.engine import diagnose_view
    from rlprobe.doctor.runview import RunView
    from rlprobe.schemas import RunManifest, StepRecord

    names = {"reward": "reward_mean", "reward_group_std": "reward_std", "entropy": "entropy_mean", "kl": "kl_mean"}
    names |= {"grad_norm": "grad_norm", "clip_fraction": "clip_fraction", "response_length": "completion_len_mean"}
    names |= {"truncated_share": "truncation_rate", "groups_equal": "zero_variance_group_frac"}
    names |= {"t_step_s": "step_time_s"}
    names = {k: v for k, v in names.items() if v in StepRecord.model_fields}
    manifest = RunManifest(run_id="r", created_at="2026-01-01T00:00:00", algorithm="grpo")
    records = [StepRecord(step=i, **{names[k]: v for k, v in r.items() if k in names}) for i, r in enumerate(rows)]
    found: Found = {}
    for n in range(8, len(records) + 1, 2):
        for f in diagnose_view(RunView(manifest, records[:n])):
            if f.severity != "info":
                _note(found, f.signature_id, f.severity, n - 1)
    yield "defaults", found


TOOLS: dict[str, Callable[[list[dict[str, float]]], Iterator[tuple[str, Found]]]] = {
    "rlwatch": rlwatch,
    "rldoctor": rldoctor,
    "rlprobe": rlprobe,
}


def replay(tool: str, rows: Path, out: Path) -> None:
    """First rows of each detector, for each run and setting."""
    with open(out, "w") as handle:
        for run in runs_of(rows):
            finite = [{k: v for k, v in r.items() if math.isfinite(v)} for r in run["rows"]]
            for setting, found in TOOLS[tool](finite):
                line = {"tool": tool, "setting": setting, "name": run["name"], "found": found}
                handle.write(json.dumps(line) + "\n")


def agentrl(run: dict[str, Any]) -> Found:
    """The shipped rules: collapse, death_spiral, non_finite, truncation."""
    from agentrl.monitors import Monitor, StepRecord

    monitor, found = Monitor(), {}
    monitor.clipped_in_loss = run["loss"]
    for i, r in enumerate(run["rows"]):
        for a in monitor.observe(StepRecord(i, r)):
            counts = ("collapse", "death_spiral") if a.level == "critical" else ()
            if a.rule in (*counts, "non_finite", "truncation", "collapse", "death_spiral") and a.level != "info":
                _note(found, "all", "warn", i)
            if a.rule in counts:
                _note(found, "all", "critical", i)
    return found


def cusum(run: dict[str, Any], drift: float, limit: float) -> Found:
    """Log entropy above the mean of the first ten rows, in their deviations, summed up."""
    values = [(i, math.log(max(r["entropy"], 1e-4))) for i, r in enumerate(run["rows"]) if "entropy" in r]
    first = [v for _, v in values[:10]]
    if len(values) < 12:
        return {}
    centre = sum(first) / 10
    spread, total = max(math.sqrt(sum((v - centre) ** 2 for v in first) / 9), 0.02), 0.0
    for i, value in values[10:]:
        total = max(0.0, total + (value - centre) / spread - drift)
        if total > limit:
            return {"cusum": {"warn": i}}
    return {}


def drop(run: dict[str, Any], share: float, width: int) -> Found:
    """The mean of the last rows below a share of its best: no noise in it."""
    rewards = [r["reward"] for r in run["rows"]]
    best = -math.inf
    for i in range(width, len(rewards) + 1):
        mean = sum(rewards[i - width : i]) / width
        best = max(best, mean)
        if best > 0 and mean < share * best:
            return {"drop": {"warn": i - 1}}
    return {}


def score(runs: list[dict[str, Any]], warned: dict[str, int | None]) -> dict[str, Any]:
    """Falls warned of in time and healthy runs warned, by responses a row."""
    out: dict[str, Any] = {}
    for size, big in (("many", True), ("few", False)):
        these = [r for r in runs if ((r["label"]["responses_per_row"] or 8) >= 40) == big]
        fell = [r for r in these if r["label"]["kind"] == "fell"]
        healthy = [r for r in these if r["label"]["kind"] == "healthy"]
        early = sum((w := warned.get(r["name"])) is not None and w <= r["label"]["fell_row"] for r in fell)
        out[size] = (early, len(fell), sum(warned.get(r["name"]) is not None for r in healthy), len(healthy))
    return out


def first(found: Found, detectors: list[str], levels: tuple[str, ...]) -> int | None:
    """The first row at which one of the detectors spoke at one of the levels."""
    rows = [found[d][level] for d in detectors if d in found for level in levels if level in found[d]]
    return min(rows, default=None)


def line(name: str, s: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{s[k][0]} of {s[k][1]} | {s[k][2]} of {s[k][3]}" for k in ("many", "few")]
    return f"| {name} | {' | '.join(cells)} |"


def best(runs: list[dict[str, Any]], options: dict[str, dict[str, int | None]]) -> tuple[str, dict[str, Any]]:
    """The option with most falls at no more than 8 % of the healthy runs, else the one with fewest of these."""
    scores = {name: score(runs, warned) for name, warned in options.items()}

    def rank(name: str) -> tuple[bool, int, int]:
        s = scores[name]
        false, healthy = s["many"][2] + s["few"][2], s["many"][3] + s["few"][3]
        ok = false <= 0.08 * healthy
        return ok, (s["many"][0] + s["few"][0]) if ok else -false, -false

    name = max(scores, key=rank)
    return name, scores[name]


def table(rows: Path, files: list[Path]) -> None:
    """Print everything."""
    runs = list(runs_of(rows))
    print("| | falls, >= 40 responses a row: warned in time | healthy: warned | falls, fewer | healthy: warned |")
    print("|---|---|---|---|---|")
    ours = {r["name"]: agentrl(r) for r in runs}
    print(line("agentrl, warn or critical", score(runs, {n: first(f, ["all"], LEVELS) for n, f in ours.items()})))
    print(line("agentrl, critical", score(runs, {n: first(f, ["all"], ("critical",)) for n, f in ours.items()})))
    for file in files:
        lines = list(runs_of(file))
        options: dict[str, dict[str, int | None]] = {}
        for setting in dict.fromkeys(x["setting"] for x in lines):
            found = {x["name"]: x["found"] for x in lines if x["setting"] == setting}
            detectors = sorted({d for f in found.values() for d in f})
            both = {n: first(f, detectors, LEVELS) for n, f in found.items()}
            print(line(f"{lines[0]['tool']}, {setting}, any finding", score(runs, both)))
            for d in [*detectors, "all"]:
                for levels in (LEVELS, ("critical",)):
                    chosen = detectors if d == "all" else [d]
                    options[f"{setting}, {d}, {levels[0]}"] = {n: first(f, chosen, levels) for n, f in found.items()}
        name, s = best(runs, options)
        print(line(f"{lines[0]['tool']}, best of {len(options)}: {name}", s))
    sums = {f"{k}, {h}": {r["name"]: first(cusum(r, k, h), ["cusum"], LEVELS) for r in runs}
            for k in (0.0, 0.25, 0.5, 1.0) for h in (2.0, 4.0, 8.0, 16.0, 64.0)}  # fmt: skip
    print(line("entropy CUSUM, drift 0.25, limit 4", score(runs, sums["0.25, 4.0"])))
    name, s = best(runs, sums)
    print(line(f"entropy CUSUM, best of {len(sums)}: {name}", s))
    drops = {f"below {s}, {w} rows": {r["name"]: first(drop(r, s, w), ["drop"], LEVELS) for r in runs}
             for s in (0.8, 0.65, 0.5, 0.35, 0.2) for w in (5, 8, 16, 32)}  # fmt: skip
    print(line("reward drop: 8-row mean below half of its best", score(runs, drops["below 0.5, 8 rows"])))
    name, s = best(runs, drops)
    print(line(f"reward drop, best of {len(drops)}: {name}", s))


def main() -> None:
    """See the module docstring."""
    command, *rest = sys.argv[1:] or ["help"]
    if command == "export":
        options = dict(zip(rest[::2], rest[1::2]))
        export(Path(options["--logs"]), Path(options["--labels"]), Path(options["--out"]))
    elif command == "replay":
        replay(rest[0], Path(rest[1]), Path(rest[2]))
    elif command == "table":
        table(Path(rest[0]), [Path(p) for p in rest[1:]])
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
