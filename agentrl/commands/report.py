"""`agentrl report RUN`: one run as a single HTML file, without scripts and without a server."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: RUN/report.html; - for stdout")


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    import sys

    from agentrl.dashboard.library import Library
    from agentrl.dashboard.report import render_report
    from agentrl.runs.files import atomic_write
    from agentrl.runs.read import find_run

    folder = find_run(args.run).resolve()
    text = render_report(Library(folder.parent), folder.name)
    if str(args.out) == "-":
        sys.stdout.write(text)
        return 0
    out: Path = args.out or folder / "report.html"
    atomic_write(out, text)
    print(out)
    return 0
