"""`agentrl config explain KEY`: what a key of the configuration means, what it takes, what it is if nobody sets it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.config.describe import Key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    what = parser.add_subparsers(dest="what", required=True, metavar="ACTION")
    explain = what.add_parser("explain", help="a key or a part, for example optim.lr or rollout; without one, all")
    explain.add_argument("key", nargs="?", help="dotted, as in the YAML file")


def run(args: argparse.Namespace) -> int:
    """Print the keys."""
    from agentrl.config.describe import explain, keys

    found = explain(args.key) if args.key else list(keys())
    for key in found:
        print("\n".join(_lines(key)))
    return 0


def _lines(key: Key) -> list[str]:
    """A part is a heading; a key has its values, its default and its meaning."""
    from agentrl.console import color

    if key.is_part:
        return [f"{color(key.name, 'blue')}  {key.meaning}" + ("  Default: null." if key.default is None else "")]
    return [f"{color(key.name, 'blue')} = {key.shown}    {key.values}", f"    {key.meaning}"]
