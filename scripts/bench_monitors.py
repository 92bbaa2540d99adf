"""What the monitors add to a training step.

    python scripts/bench_monitors.py                 # trains the default job for a few steps first
    python scripts/bench_monitors.py --run runs/NAME # replays a finished run

The run's own records (all signals, all groups) go through a fresh `Monitor` with the console and file sinks, several
times over; the time of one `observe` is compared with the run's own step time. The measurement of Δ and of the probe
set is a scoring pass and not part of the monitors; its share is printed beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

from agentrl.monitors import Monitor, StepRecord, sinks

STEPS, REPEATS = 20, 20
NOT_METRICS = ("step", "time", "tokens")


def trained(folder: Path) -> Path:
    """A short run of the default job."""
    from agentrl.config.files import load_config
    from agentrl.train.start import train_run

    overrides = [f"log.runs_dir={folder}", f"train.steps={STEPS}", "eval.questions=0", "log.checkpoint_every=0"]
    return train_run(load_config("search_tiny", overrides).config, quiet=True).run_dir


def records(run: Path, groups: int = 24) -> list[StepRecord]:
    """The run's steps, with as many made-up groups as the default job has questions."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    out = []
    for row in rows:
        values = {k: v for k, v in row.items() if k not in NOT_METRICS and isinstance(v, int | float)}
        made = [
            {"group_id": f"g{i}", "reward_mean": i / groups, "delta": -i / 100, "logprob_correct": -0.1 * i,
             "sample_ids": [f"g{i}-{j}" for j in range(8)]}
            for i in range(groups)
        ]  # fmt: skip
        out.append(StepRecord(row["step"], values, made))
    return out


def observe_seconds(steps: list[StepRecord], folder: Path) -> list[float]:
    """Seconds of each `observe` once the windows are full, over several passes."""
    seconds = []
    for _ in range(REPEATS):
        monitor = Monitor(sinks=[sinks.console(io.StringIO()), sinks.jsonl(folder / "alarms.jsonl")])
        for n, record in enumerate(steps * (1 + 80 // len(steps))):  # past the longest memory
            following = StepRecord(n, record.metrics, record.groups)
            start = time.perf_counter()
            monitor.observe(following)
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = args.run or trained(Path(temporary))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        seconds = observe_seconds(records(run), Path(temporary))
    step = statistics.median(row["t_step_s"] for row in rows)
    delta = sum(row.get("t_delta_s", 0.0) for row in rows) / sum(row["t_step_s"] for row in rows)
    figures = {
        "signals": max(len(row) - len(NOT_METRICS) for row in rows),
        "step_s": step,
        "observe_ms_median": 1e3 * statistics.median(seconds),
        "observe_ms_p99": 1e3 * sorted(seconds)[int(0.99 * len(seconds))],
        "share_of_a_step": statistics.median(seconds) / step,
        "delta_and_probe_share": delta,
    }
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{figures['signals']} signals; a step takes {step:.2f} s (median)")
    print(f"observe: {figures['observe_ms_median']:.2f} ms (99 %: {figures['observe_ms_p99']:.2f} ms)")
    print(f"share of a step: {figures['share_of_a_step']:.2%}; scoring for Δ and the probe set: {delta:.1%}")


if __name__ == "__main__":
    main()
