"""`agentrl resume RUN`: go on from the last good checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", type=Path, help="a run directory, for example runs/NAME")
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Resume."""
    from agentrl.commands.train import report
    from agentrl.runs.read import find_run

    path = find_run(args.run)  # a wrong path is told before torch is loaded
    from agentrl.train.start import resume_run

    return report(resume_run(path, quiet=args.json), args.json)
