"""`agentrl completion bash | zsh`: a completion script, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

PATHS = {"config", "corpus", "index", "out", "run", "runs_dir", "source", "suite", "target"}  # arguments that are paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.epilog = (
        'bash: eval "$(agentrl completion bash)" in ~/.bashrc.   '
        "zsh: agentrl completion zsh > a file _agentrl in a folder of $fpath."
    )
    parser.add_argument("shell", choices=["bash", "zsh"])


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    parser = args.whole_parser()
    for action in _actions(parser):
        if action.dest in PATHS and action.nargs != 0 and action.choices is None:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument of the parser and of the parsers below it."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                yield from _actions(below)
