"""`agentrl completion bash | zsh`: a completion script, made from the parser."""

from __future__ import annotations

import argparse


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

    from agentrl.cli import build_parser

    print(shtab.complete(build_parser(), args.shell))
    return 0
