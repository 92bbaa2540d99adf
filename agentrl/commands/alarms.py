"""`agentrl alarms RUN`: what the monitors have said about a run, what the guard did, what somebody has seen of it."""

from __future__ import annotations

import argparse
from typing import Any

COLORS = {"info": "blue", "warn": "yellow", "critical": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--ack", nargs="+", default=[], metavar="ID", help="note that these were seen; `all` for all")
    parser.add_argument("--unack", nargs="+", default=[], metavar="ID", help="take that back")
    parser.add_argument("--open", action="store_true", help="only those that nobody has acknowledged")
    parser.add_argument("--json", action="store_true", help="print the alarms as JSON")


def run(args: argparse.Namespace) -> int:
    """Acknowledge what was asked, then list."""
    from agentrl.console import color, print_json
    from agentrl.monitors.stop_rule import in_words
    from agentrl.runs.read import acknowledge, find_run, read_alarms, read_guard

    path = find_run(args.run)
    for ids, value in ((args.ack, True), (args.unack, False)):
        for name in [str(a["id"]) for a in read_alarms(path)] if ids == ["all"] else ids:
            acknowledge(path, name, value)
    alarms = [a for a in read_alarms(path) if not (args.open and a["acknowledged"])]
    if args.json:
        print_json(alarms)
        return 0
    entries = [(a["step"], 0, _alarm(a)) for a in alarms]
    if not args.open:
        entries += [
            (g["step"], 1, f"{color('guard   ', 'blue')} step {g['step']:>5}  {in_words(g)}") for g in read_guard(path)
        ]
    for _, _, text in sorted(entries, key=lambda e: e[:2]):
        print(text)
    if not alarms:
        print(f"no {'open ' if args.open else ''}alarms in {path}")
    return 0


def _alarm(a: dict[str, Any]) -> str:
    from agentrl.console import color

    seen = "  (seen)" if a["acknowledged"] else ""
    level = color(f"{a['level']:8}", COLORS.get(a["level"], "blue"))
    return f"{level} step {a['step']:>5}  {a['rule']}: {a['message']}{seen}\n{'':20}{a['remedy']}\n{'':20}id {a['id']}"
