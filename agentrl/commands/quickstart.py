"""`agentrl quickstart`: the default job, from nothing to a trained agent."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the world, the model and the run (default: 0)"
    )
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where the run goes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, show."""
    from agentrl.quickstart import quickstart

    result = quickstart(args.seed, args.runs_dir, quiet=args.json)
    if args.json:
        print(json.dumps({k: result[k] for k in ("em_before", "em_after", "seconds", "run_dir")}))
    return 0
