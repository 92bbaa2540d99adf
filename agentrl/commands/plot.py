"""`agentrl plot surrogates`: reward, surrogate and gradient weight over the success rate (SHAPE Fig. 1)."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    sub = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    surrogates = sub.add_parser("surrogates", help="reward, surrogate and gradient weight over ρ")
    surrogates.add_argument("names", nargs="*", default=None, help="algorithms (default: all that have a surrogate)")
    surrogates.add_argument("--k", type=int, default=4, help="K of the pass@K variants (default: %(default)s)")
    surrogates.add_argument("--out", type=Path, default=Path("surrogates"), help="path without suffix")


def run(args: argparse.Namespace) -> int:
    """Draw the figure."""
    from agentrl.lab.surrogates import plot_surrogates

    for path in plot_surrogates(args.names or None, args.k, args.out):
        print(path)
    return 0
