"""What the monitors add to a training step, and how long `agentrl watch` takes to start.

    python scripts/bench_monitors.py                 # trains the default job for a few steps first
    python scripts/bench_monitors.py --run runs/NAME # replays a finished run
    python scripts/bench_monitors.py --start         # only the start: `watch` of a log of 30 rows, beside bare Python

The run's own records (all signals, all groups) go through a fresh `Monitor` with the console and file sinks, several
times over; the time of one `observe` is compared with the run's own step time. The measurement of Δ and of the probe
set is a scoring pass and not part of the monitors; its share is printed beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agentrl.monitors import Monitor, StepRecord, sinks

STEPS, REPEATS = 20, 20
STARTS = 20  # of each command, after one that may write bytecode
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


def start_seconds(*arguments: str) -> tuple[float, float, float]:
    """(least wall, median wall, least CPU) seconds of a Python process with these arguments."""
    walls, cpus = [], []
    for _ in range(STARTS + 1):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls[1:]), statistics.median(walls[1:]), min(cpus[1:])


def print_starts(folder: Path) -> None:
    """A line each for bare Python, the help, and `watch` of a short log."""
    log = folder / "short.jsonl"
    log.write_text("".join(f'{{"step": {n}, "reward": {0.1 + 0.01 * n:.2f}, "entropy": 1.0}}\n' for n in range(30)))
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        print("PYTHONDONTWRITEBYTECODE is set: what was not compiled before is compiled at each start")
    command = ("-c", "import sys; from agentrl.cli import main; sys.exit(main())")
    for name, arguments in {
        "python -c pass": ("-c", "pass"),
        "agentrl watch --help": (*command, "watch", "--help"),
        "agentrl watch short.jsonl --once": (*command, "watch", str(log), "--once"),
    }.items():
        least, median, cpu = start_seconds(*arguments)
        print(f"{name:34} {1e3 * least:4.0f} ms at least, {1e3 * median:4.0f} (median); CPU {1e3 * cpu:.0f} ms")


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", action="store_true", help="only the start of `watch`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.start:
            print_starts(Path(temporary))
            return
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
