"""`agentrl retriever build | serve | query`: the retriever package's own commands."""

from __future__ import annotations

import argparse

from agentrl.retriever import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    cli.add_arguments(parser.add_subparsers(required=True, metavar="COMMAND"))


def run(args: argparse.Namespace) -> int:
    """What the subcommand has set."""
    return int(args.run(args))
