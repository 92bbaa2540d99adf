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
    from agentrl.errors import command
    from agentrl.runs.read import how_to_go_on, list_runs

    runs = list_runs(args.runs_dir)
    if args.json:
        print_json([_row(r) for r in runs])
        return 0
    if not runs:
        start = command("train", "search_tiny", "--set", f"log.runs_dir={args.runs_dir}")
        print(f"no runs in {args.runs_dir}; start one: {start}")
        return 0
    rows = [["run", "status", "step", "reward", "updated"]]
    rows += [[_shown(r.name), r.status, _steps(r), _reward(r), _when(r.updated)] for r in runs]
    print(table(rows))
    unfinished = [r for r in runs if r.status in ("stopped", "failed")]
    for r in unfinished:
        why = f"    # {_shown(r.message)}" if r.status == "failed" and r.message else ""
        print(_shown(how_to_go_on(r.path)) + why)
    return 0


def _shown(text: str) -> str:
    """One line: a name can hold line breaks and what drives a terminal."""
    from agentrl.console import printable

    return printable(text).replace("\n", "\\n")


def _row(r: RunInfo) -> dict[str, Any]:
    from agentrl.runs.read import how_to_go_on

    row = {"name": r.name, "path": str(r.path), "status": r.status, "step": r.step, "steps": r.steps}
    row |= {"reward": r.metrics.get("reward"), "updated": r.updated, "message": r.message}
    return row | ({"resume": how_to_go_on(r.path)} if r.status in ("stopped", "failed") else {})


def _steps(r: RunInfo) -> str:
    return str(r.step) if r.steps is None else f"{r.step}/{r.steps}"


def _reward(r: RunInfo) -> str:
    value = r.metrics.get("reward")
    return f"{value:.3f}" if isinstance(value, int | float) else ""


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
