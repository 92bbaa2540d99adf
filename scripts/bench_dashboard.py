"""What the dashboard's documentation claims: `python scripts/bench_dashboard.py [--gib 2]`.

The list of 500 runs, the first look at a large metrics file, and the time from a row on the disk to its event.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from agentrl.config import RunConfig, WorldConfig
from agentrl.dashboard.history import History
from agentrl.dashboard.library import Library
from agentrl.runs.files import append_line
from agentrl.runs.log import RunLog

RUNS, STEPS, SIGNALS = 500, 140, 55


def row(step: int) -> dict[str, float]:
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


def latency(run: Path) -> float:
    """Median seconds from appending a row to its event, over ten rows."""
    command = [sys.executable, "-m", "agentrl", "dashboard", str(run.parent), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
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
    finally:
        server.terminate()
        server.wait(20)


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


if __name__ == "__main__":
    main()
