"""What the dashboard's documentation claims: `python scripts/bench_dashboard.py [--gib 2]`.

The list of 500 runs, the first look at a large metrics file, the time from a row on the disk to its event, and the time
until a run of 100,000 steps is answered with every extreme and every value that is not finite.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from agentrl.config import RunConfig, WorldConfig
from agentrl.dashboard.history import History
from agentrl.dashboard.library import Library
from agentrl.runs.files import append_line
from agentrl.runs.log import RunLog

RUNS, STEPS, SIGNALS = 500, 140, 55
LONG, ODD = 100_000, 1_000  # steps of the long run; every so many steps a spike and a NaN


def row(step: int) -> dict[str, Any]:
    """A row as long as the trainer's."""
    numbers = {f"signal_{i}": 0.123456789 * (i + step % 7) for i in range(SIGNALS)}
    return {"step": step, "time": 1.79e9 + step, "reward": step % 100 / 100, "logprob_correct": -0.3} | numbers


def make(root: Path, name: str, steps: int) -> Path:
    """A finished run without rollouts."""
    with RunLog.create(root, name, RunConfig(world=WorldConfig())) as log:
        (log.path / "metrics.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(steps)))
        log.set_status("finished", step=steps, steps=steps)
    return log.path


def seconds(what: str, began: float) -> None:
    """One line of the result."""
    print(f"{what:60} {time.perf_counter() - began:8.3f} s", flush=True)


@contextmanager
def dashboard(root: Path) -> Iterator[str]:
    """A dashboard of `root` as a user starts it; its address."""
    command = [sys.executable, "-m", "agentrl", "dashboard", str(root), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[1]
    finally:
        server.terminate()
        server.wait(20)


def opened(root: Path) -> None:
    """Print how long the first answer about a run of `LONG` steps takes, and what it shows of its odd rows."""
    run = make(root, "long", 0)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(LONG):
            odd = (
                {"signal_3": 1e6 + step, "signal_4": None, "nonfinite": ["signal_4"]} if step % ODD == ODD // 2 else {}
            )
            file.write(json.dumps(row(step) | odd) + "\n")
    size = (run / "metrics.jsonl").stat().st_size / 2**20
    with dashboard(root) as url:
        httpx.get(url)
        began = time.perf_counter()
        answer = httpx.get(f"{url}api/run", params={"run": run.name}, timeout=60)
        seconds(f"first answer about a run of {LONG:,} steps, {size:.0f} MiB", began)
    shown = answer.json()
    spikes = sum((value or 0) >= 1e6 for value in shown["columns"]["signal_3"])
    nan = len(shown["nonfinite"]["signal_4"])
    print(f"  {spikes} of {LONG // ODD} spikes and {nan} of {LONG // ODD} NaN are in it")


def latency(run: Path) -> float:
    """Median seconds from appending a row to its event, over ten rows."""
    with dashboard(run.parent) as url:
        start = httpx.get(f"{url}api/run", params={"run": run.name}).json()
        took: list[float] = []
        query = {"run": run.name, "after": start["cursor"]}
        with httpx.stream("GET", f"{url}api/events", params=query, timeout=30) as answer:
            lines = answer.iter_lines()
            for step in range(STEPS, STEPS + 10):
                time.sleep(0.37)  # not in step with the server's looks
                began = time.perf_counter()
                append_line(run / "metrics.jsonl", row(step))
                while not next(lines).startswith('data: {"rows": [{'):
                    pass
                took.append(time.perf_counter() - began)
        return sorted(took)[len(took) // 2]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.25, help="size of the large metrics file (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i in range(RUNS):
            make(root / "many", f"run-{i:03d}", STEPS)
        library = Library(root / "many")
        for name in ("first time", "again"):
            began = time.perf_counter()
            library.list_runs()
            seconds(f"list of {RUNS} runs, {name}", began)
        print(f"{'a row on the disk to its event, median of ten':60} {latency(root / 'many' / 'run-000'):8.3f} s")
        large = make(root / "large", "large", 0)
        with (large / "metrics.jsonl").open("w") as file:
            step = 0
            while file.tell() < args.gib * 2**30:
                file.write("".join(json.dumps(row(i)) + "\n" for i in range(step, step + 1000)))
                step += 1000
        began = time.perf_counter()
        History(large).refresh()
        seconds(f"first look at a metrics file of {args.gib:g} GiB, {step:,} rows", began)
        opened(root / "long")


if __name__ == "__main__":
    main()
