"""`agentrl watch SOURCE`: the monitors for any trainer's log, while it grows or after the fact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.commands.recording import RunRecorder
    from agentrl.runs.others.store import RolloutImport
    from agentrl.types import Alarm

LONGEST_S = 1e7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "source",
        help="a console log, JSONL, JSON, CSV, TensorBoard directory, W&B run, MLflow or trackio store, run directory; "
        "- reads standard input",
    )
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="SIGNAL=COLUMN", help="overrides")
    parser.add_argument("--json", action="store_true", help="one JSON object per alarm on stdout")
    parser.add_argument("--once", action="store_true", help="stop at the end of the file instead of waiting for more")
    parser.add_argument("--explain", action="store_true", help="what is understood of the log, and what is missing")
    parser.add_argument("--run", help="which of several runs (default: the one that wrote last)")
    parser.add_argument("--step", metavar="COLUMN", help="the column with the step, where it has a name of its own")
    parser.add_argument(
        "--where", nargs="+", action="extend", default=[], metavar="COLUMN=VALUE", help="only rows that have this"
    )
    parser.add_argument("--every", type=seconds, default=1.0, metavar="S", help="seconds between looks (default 1)")
    parser.add_argument(
        "--settle", type=seconds, default=10.0, metavar="S", help="take a step as complete after S quiet s"
    )
    parser.add_argument(
        "--stall", type=seconds_or_0, default=1800.0, metavar="S", help="tell of a log quiet for S s (1800; 0: never)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=NUMBER", help="thresholds, as clip_share=0.05"
    )
    parser.add_argument(
        "--rule", action="append", default=[], metavar="NAME", help="a further rule: plug-in or module:attribute"
    )
    parser.add_argument(
        "--sink", action="append", default=[], metavar="NAME", help="where alarms go too: NAME or NAME=ARGUMENT"
    )
    parser.add_argument(
        "--format", metavar="NAME", help="the log's format, where it is not found out: plug-in or module:attribute"
    )
    parser.add_argument("--webhook", metavar="URL", help="also POST each alarm as JSON")
    parser.add_argument("--to", type=Path, metavar="RUN", help="also keep it as this run directory, for the dashboard")
    add_rollout_arguments(parser)


def add_rollout_arguments(parser: argparse.ArgumentParser) -> None:
    """The options for others' rollouts, of `watch` and `import`."""
    parser.add_argument("--rollouts", type=Path, metavar="PATH", help="others' rollouts, into the run directory")
    parser.add_argument("--rollout-format", metavar="NAME", help="their format, where it is not found out")
    parser.add_argument("--gpus", type=gpus, metavar="N", help="that the run uses: the dashboard counts GPU-hours")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="a tokenizer.json: the text of rollouts' tokens")


def gpus(text: str) -> int:
    """A number of GPUs."""
    if not text.isdecimal() or not 0 < int(text) < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GPUs: give 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    value = seconds_or_0(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0")
    return value


def seconds_or_0(text: str) -> float:
    """A number of seconds, 0 among them."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 <= value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 0 and {LONGEST_S:g} seconds")
    return value


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 also when there were alarms.

    1 where one was not delivered or the log was gone, 2 where nothing could be judged.
    """
    from contextlib import closing, nullcontext

    from agentrl.errors import AgentRLError
    from agentrl.monitors.bodies import about
    from agentrl.monitors.watcher import watch

    name, failure = _run_of(args.source)
    rollouts = rollouts_of(args, args.rollouts)
    if rollouts is not None and args.to is None:
        raise AgentRLError(f"--rollouts {args.rollouts} needs --to RUN, the run directory that they are kept in")
    recorder = _recorder(args, rollouts) if args.to else None
    name = args.to.name if args.to else name
    with closing(recorder) if recorder else nullcontext():
        code = watch(
            args.source,
            columns=args.map,
            run=args.run,
            as_json=args.json,
            once=args.once,
            every=args.every,
            settle=args.settle,
            stall=args.stall,
            webhook=args.webhook,
            thresholds=args.set,
            rules=args.rule,
            outputs=args.sink,
            form=args.format,
            where=args.where,
            step=args.step,
            explain=args.explain,
            whose=about(run=name, source=args.source) if args.webhook else None,
            failure=failure,
            recorder=recorder,
        )
    tell_rollouts(rollouts)
    return code


def rollouts_of(args: argparse.Namespace, path: Path | None) -> RolloutImport | None:
    """The importer that the options ask for; None where there is no `path`."""
    if path is None:
        return None
    from agentrl.runs.others.store import RolloutImport

    return RolloutImport(path, args.rollout_format, args.tokenizer)


def tell_rollouts(rollouts: RolloutImport | None) -> None:
    """What was read of them, on stderr, control characters shown."""
    if rollouts is None:
        return
    from agentrl.console import printable

    for line in rollouts.summary():
        print(printable(line), file=sys.stderr)


def _recorder(args: argparse.Namespace, rollouts: RolloutImport | None) -> RunRecorder:
    """What writes the run directory; pydantic and the config come with it, so that only who records waits for them."""
    from agentrl.commands.recording import RunRecorder

    return RunRecorder(args.to, args.source, live=not args.once, rollouts=rollouts, gpus=args.gpus)


def _run_of(source: str) -> tuple[str, Callable[[], Alarm | None]]:
    """The name of the run directory `source`, and what says that it has failed; nothing for other logs."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return "", lambda: None

    from agentrl.monitors import notices
    from agentrl.runs.read import STATUS, how_to_go_on, is_run, read_info

    if not is_run(path):
        return "", lambda: None

    def failure() -> Alarm | None:
        info = read_info(path)
        if info.status != "failed" and not (info.status == "stopped" and info.lost):
            return None
        when = (path / STATUS).stat().st_mtime if (path / STATUS).exists() else 0.0
        return notices.failed(info.step, info.name, info.message, how_to_go_on(path), when)

    return path.resolve().name, failure
