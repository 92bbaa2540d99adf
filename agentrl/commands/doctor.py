"""`agentrl doctor`: look at the installation and the machine; exit code 1 where something is broken."""

from __future__ import annotations

import argparse

MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs will go (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    from dataclasses import asdict

    from agentrl.console import color, print_json
    from agentrl.doctor import examine

    findings = examine(args.runs_dir)
    broken = sum(f.level == "fail" for f in findings)
    if args.json:
        print_json({"ok": not broken, "findings": [asdict(f) for f in findings]})
        return 1 if broken else 0
    part = ""
    for f in findings:
        if f.part != part:
            part = f.part
            print(color(part, "bold"))
        mark, shade = MARKS[f.level]
        print(f"  {color(mark, shade)} {f.name:<20} {f.value}")
        if f.remedy:
            print(f"    {'':20} {color('→ ' + f.remedy, shade)}")
    warned = sum(f.level == "warn" for f in findings)
    print(f"\n{broken} broken, {warned} to look at" if broken or warned else "\nall is well")
    return 1 if broken else 0
