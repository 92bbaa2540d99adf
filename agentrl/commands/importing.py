"""`agentrl import LOG`: another trainer's log becomes a run directory, which the dashboard shows. Read once."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", help="what `agentrl watch` reads")
    parser.add_argument(
        "--to", type=Path, metavar="RUN", help="the run directory to write (default: runs/NAME of the log)"
    )
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="SIGNAL=COLUMN", help="overrides")
    parser.add_argument("--run", help="which of several runs (default: the one that wrote last)")
    parser.add_argument("--step", metavar="COLUMN", help="the column with the step, where it has a name of its own")
    parser.add_argument("--format", metavar="NAME", help="the log's format, where it is not found out")


def run(args: argparse.Namespace) -> int:
    """Entry point; the run's path on stdout."""
    from contextlib import closing, redirect_stdout
    from sys import stderr

    from agentrl.commands.recording import RunRecorder
    from agentrl.monitors.watcher import watch

    source = Path(args.source).expanduser()
    to: Path = args.to or Path("runs") / (source.resolve().parent.name if source.stem == "metrics" else source.stem)
    with closing(RunRecorder(to, args.source, live=False)) as recorder, redirect_stdout(stderr):
        code = watch(
            args.source, columns=args.map, run=args.run, step=args.step, form=args.format, once=True, recorder=recorder
        )
    print(recorder.path)
    return code
