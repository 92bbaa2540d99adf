"""`agentrl import SOURCE`: another trainer's log, rollouts or both become a run directory. Read once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.commands.watch import add_rollout_arguments, rollouts_of, tell_rollouts

if TYPE_CHECKING:
    from agentrl.runs.others.store import RolloutImport

#: Folders that say nothing of the run: its own is above.
GENERIC = ("completions", "rollouts", "token_exports", "rollout_data", "rollout_data_dir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", help="what `agentrl watch` reads, or a file or folder of others' rollouts")
    parser.add_argument(
        "--to", type=Path, metavar="RUN", help="the run directory to write (default: runs/NAME of the source)"
    )
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="SIGNAL=COLUMN", help="overrides")
    parser.add_argument("--run", help="which of several runs (default: the one that wrote last)")
    parser.add_argument("--step", metavar="COLUMN", help="the column with the step, where it has a name of its own")
    parser.add_argument("--format", metavar="NAME", help="the log's format, where it is not found out")
    add_rollout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Entry point; the run's path on stdout. 2 where nothing could be read."""
    from contextlib import closing, redirect_stdout
    from sys import stderr

    from agentrl.commands.recording import RunRecorder
    from agentrl.monitors.watcher import watch

    source = Path(args.source).expanduser()
    found, is_log = _what(args, source)
    rollouts = rollouts_of(args, found)
    to: Path = args.to or Path("runs") / _name(source)
    if not is_log:
        assert rollouts is not None
        code = _only_rollouts(to, rollouts, args.gpus)
    else:
        recorder = RunRecorder(to, args.source, live=False, rollouts=rollouts, gpus=args.gpus)
        with closing(recorder), redirect_stdout(stderr):
            code = watch(
                args.source, columns=args.map, run=args.run, step=args.step, form=args.format, once=True,
                recorder=recorder,
            )  # fmt: skip
        to = recorder.path
    tell_rollouts(rollouts)
    print(to)
    return code


def _what(args: argparse.Namespace, source: Path) -> tuple[Path | None, bool]:
    """Where the rollouts are, and whether the source is a log, too: a TRL output folder holds both."""
    from agentrl.errors import AgentRLError
    from agentrl.monitors.sources.detect import open_source
    from agentrl.runs.others.store import holds_rollouts

    if args.rollouts is not None:
        return args.rollouts, True
    if args.rollout_format is not None:
        return source, False
    if args.format is not None or str(source) == "-" or not holds_rollouts(source):
        return None, True
    if not source.is_dir():
        return source, False
    try:
        open_source(source, args.run, newest=True).close()
    except AgentRLError:
        return source, False
    return source, True


def _only_rollouts(to: Path, rollouts: RolloutImport, gpus: int | None) -> int:
    """The charts are the steps' means of reward, correct answers, length and entropy, as far as they are known."""
    from contextlib import closing

    from agentrl.runs.foreign import ForeignLog

    with closing(ForeignLog.at(to, str(rollouts.source.absolute()))) as log:
        rollouts.refresh(to)
        trained = sorted((step, means) for (kind, step), means in rollouts.steps.items() if kind == "step")
        log.begin(str(rollouts.source.absolute()), "rollouts: " + ", ".join(rollouts.formats), None, False, gpus)
        for step, means in trained:
            log.row(step, means.metrics(), {})
        log.state("finished", trained[-1][0] + 1 if trained else 0)
    return 0 if rollouts.steps else 2


def _name(source: Path) -> str:
    """The log's name, or the folder's where that says more."""
    whole = source.resolve()
    generic = source.stem == "metrics" or whole.name in GENERIC or whole.suffix in (".parquet", ".pt")
    generic = generic or whole.stem.isdigit()
    if not generic:
        return source.stem
    above = whole.parent
    return above.parent.name if above.name in GENERIC else above.name
