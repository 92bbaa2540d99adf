"""`agentrl lld delta|identify|tokens|spiral`: the papers' experiments on likelihood displacement."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.job import Job
    from agentrl.lab.groups import Group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their options."""
    sub = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    delta = sub.add_parser("delta", help="change of correct responses' likelihood by one update, per method")
    delta.add_argument("--methods", default="grpo,pos_only,random,nthr", help="comma-separated (default: %(default)s)")
    delta.add_argument("--updates", type=int, default=1, help="updates on the same rollouts; llds needs 2 or more")
    identify = sub.add_parser("identify", help="does GWHES find the questions that lose likelihood?")
    identify.add_argument("--top", type=int, default=10, help="size of the sets compared (default: %(default)s)")
    tokens = sub.add_parser("tokens", help="an incorrect response, its tokens coloured by NTHR score")
    tokens.add_argument("--question", type=int, default=0, help="which of the mixed groups")
    spiral = sub.add_parser("spiral", help="train several methods under a harsh setting, from one checkpoint")
    spiral.add_argument("--methods", default="grpo,pos_only,nthr,llds", help="comma-separated (default: %(default)s)")
    spiral.add_argument("--steps", type=int, default=110)
    for p in (delta, identify, tokens, spiral):
        p.add_argument(
            "run", type=Path, help="a run directory: its config, and its last checkpoint or the one of --step"
        )
        p.add_argument("--step", type=int, default=None, help="take the checkpoint of this step")
        p.add_argument("--seed", type=int, default=0, help="of the questions and of sampling")
        p.add_argument("--out", type=Path, default=None, help="folder for figures (default: RUN/lld)")
        p.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change the run's config")
        p.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    for p in (delta, identify, tokens):
        p.add_argument("--questions", type=int, default=40 if p is not tokens else 4, help="mixed groups to use")


def run(args: argparse.Namespace) -> int:
    """Run one experiment."""
    out = args.out or args.run / "lld"
    say = _say(args.json)
    if args.experiment == "spiral":
        return _spiral(args, out)
    job, groups = _groups(args)
    if args.experiment == "delta":
        from agentrl.console import table
        from agentrl.lab.delta import plot_delta, run_delta

        result = run_delta(job, groups, args.methods.split(","), updates=args.updates, say=say)
        say(table(result.table()))
        for path in plot_delta(result, out / "delta"):
            say(f"figure: {path}")
        return _done(args, result.to_json())
    if args.experiment == "identify":
        from agentrl.lab.identify import run_identify

        found = run_identify(job, groups, top=args.top, say=say)
        say(
            f"top-{found.top} overlap of GWHES with the lowest Δ(x): {found.overlap}/{found.top} "
            f"(random: {found.expected:.1f}); Spearman of GWHES and -Δ: {found.rank_correlation:+.2f}"
        )
        return _done(args, found.to_json())
    from agentrl.lab.tokens import score_tokens, to_html, to_terminal

    tokens, scale = score_tokens(job, groups[min(args.question, len(groups) - 1)])
    say(to_terminal(tokens, scale, color=sys.stdout.isatty()))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "tokens.html"
    page.write_text(to_html(tokens, scale), encoding="utf-8")
    say(f"page: {page}")
    return _done(args, {"tokens": [vars(t) for t in tokens], "scale": scale})


def _spiral(args: argparse.Namespace, out: Path) -> int:
    from agentrl.config_io import load_config
    from agentrl.console import table
    from agentrl.lab.spiral import plot_spiral, run_spiral

    config = load_config(args.run / "config.yaml", [*args.set, f"seed={args.seed}"]).config
    result = run_spiral(
        config,
        _checkpoint(args) / "model",
        out / "spiral",
        args.methods.split(","),
        steps=args.steps,
        say=_say(args.json),
    )
    _say(args.json)(table(result.table()))
    for path in plot_spiral(result, out / "spiral"):
        _say(args.json)(f"figure: {path}")
    return _done(args, {"rows": result.rows})


def _groups(args: argparse.Namespace) -> tuple[Job, list[Group]]:
    from agentrl.config_io import load_config
    from agentrl.job import build_job
    from agentrl.lab.groups import mixed_groups

    config = load_config(args.run / "config.yaml", args.set).config
    job = build_job(config, args.run, model_path=_checkpoint(args) / "model", say=_say(args.json))
    return job, mixed_groups(job, args.questions, seed=args.seed, say=_say(args.json))


def _checkpoint(args: argparse.Namespace) -> Path:
    from agentrl.checkpoint import checkpoint_at

    return checkpoint_at(args.run, args.step)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda text: print(text, file=sys.stderr)) if quiet else print


def _done(args: argparse.Namespace, result: dict) -> int:
    if args.json:
        print(json.dumps(result))
    return 0
