"""`agentrl resume RUN`: go on from the last good checkpoint. The work is `agentrl.train.start.resume_run`'s."""

from __future__ import annotations

import argparse
from pathlib import Path

from agentrl.commands.eval import step_or_best


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", type=Path, help="a run directory, for example runs/NAME")
    parser.add_argument(
        "--checkpoint", type=step_or_best, metavar="STEP|best", help="go back to this one (default: the newest)"
    )
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Resume."""
    from agentrl.commands.train import report
    from agentrl.console import unbreakable
    from agentrl.runs.checkpoint import run_of_checkpoint
    from agentrl.runs.read import find_run

    inside = run_of_checkpoint(args.run)
    if inside is not None and args.checkpoint is None:
        args.run, args.checkpoint = inside
    path = find_run(args.run)  # a wrong path is told before torch is loaded
    from agentrl.train.start import resume_run

    with unbreakable():
        return report(resume_run(path, checkpoint=args.checkpoint, quiet=args.json), args.json)
