"""`agentrl runs`: what is in a folder of runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.runs.read import RunInfo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs_dir", nargs="?", default="runs", help="folder of runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """List the runs, the latest first."""
    from agentrl.console import print_json, table
    from agentrl.runs.read import list_runs

    runs = list_runs(args.runs_dir)
    if args.json:
        print_json([_row(r) for r in runs])
        return 0
    if not runs:
        print(f"no runs in {args.runs_dir}; start one: agentrl train search_tiny --set log.runs_dir={args.runs_dir}")
        return 0
    rows = [["run", "status", "step", "reward", "updated"]]
    rows += [[r.name, r.status, _steps(r), _reward(r), _when(r.updated)] for r in runs]
    print(table(rows))
    unfinished = [r for r in runs if r.status in ("stopped", "failed")]
    for r in unfinished:
        print(f"agentrl resume {r.path}" + (f"    # {r.message}" if r.status == "failed" and r.message else ""))
    return 0


def _row(r: RunInfo) -> dict[str, Any]:
    row = {"name": r.name, "path": str(r.path), "status": r.status, "step": r.step, "steps": r.steps}
    row |= {"reward": r.metrics.get("reward"), "updated": r.updated, "message": r.message}
    return row | ({"resume": f"agentrl resume {r.path}"} if r.status in ("stopped", "failed") else {})


def _steps(r: RunInfo) -> str:
    return str(r.step) if r.steps is None else f"{r.step}/{r.steps}"


def _reward(r: RunInfo) -> str:
    value = r.metrics.get("reward")
    return f"{value:.3f}" if isinstance(value, int | float) else ""


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
