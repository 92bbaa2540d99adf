"""`agentrl watch SOURCE`: the monitors for any trainer's log, while it grows or after the fact."""

from __future__ import annotations

import argparse


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
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between looks (default 1)")
    parser.add_argument(
        "--settle", type=float, default=10.0, metavar="S", help="take a step as complete after S quiet s"
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


def run(args: argparse.Namespace) -> int:
    """Entry point; 0 also when there were alarms, 2 where nothing could be judged."""
    from agentrl.monitors.watcher import watch

    return watch(
        args.source,
        columns=args.map,
        run=args.run,
        as_json=args.json,
        once=args.once,
        every=args.every,
        settle=args.settle,
        webhook=args.webhook,
        thresholds=args.set,
        rules=args.rule,
        outputs=args.sink,
        form=args.format,
        where=args.where,
        step=args.step,
        explain=args.explain,
    )
