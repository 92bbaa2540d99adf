"""`agentrl lab delta|identify|tokens|spiral`: the papers' experiments on likelihood displacement."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrl.lab.groups import Group, Step
    from agentrl.train.build import Job


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
    spiral.add_argument("--steps", type=int, default=60, help="per method (default: %(default)s)")
    spiral.add_argument("--lr", type=float, default=None, help="of the harsh setting (default: the run's)")
    for p in (delta, identify, tokens, spiral):
        p.add_argument(
            "run", type=Path, help="a run directory: its config, and its last checkpoint or the one of --step"
        )
        p.add_argument("--step", type=int, default=None, help="take the checkpoint of this step")
        p.add_argument("--seed", type=int, default=0, help="of the questions and of sampling")
        p.add_argument("--out", type=Path, default=None, help="folder for figures (default: RUN/lab)")
        p.add_argument("--set", action="append", default=[], metavar="a.b=c", help="change the run's config")
        p.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    for p in (delta, identify):
        p.add_argument(
            "--optimizer",
            choices=("sgd", "adam", "run"),
            default="sgd",
            help="sgd: a small step along the gradient, as in the papers' theory; adam: fresh, so a step of lr in "
            "every weight; run: the run's own state, so that earlier gradients take part (default: %(default)s)",
        )
        p.add_argument("--lr", type=float, default=None, help="of that update (default: 0.001 for sgd, else the run's)")
    for p in (delta, identify, tokens):
        p.add_argument("--questions", type=int, default=40 if p is not tokens else 4, help="mixed groups to use")


def run(args: argparse.Namespace) -> int:
    """Run one experiment."""
    _check(args)
    out = args.out or args.run / "lab"
    return {"delta": _delta, "identify": _identify, "tokens": _tokens, "spiral": _spiral}[args.experiment](args, out)


def _check(args: argparse.Namespace) -> None:
    """Numbers and names that cannot work are refused before a model is loaded."""
    from agentrl.errors import ConfigError

    problems = [
        f"--{name} {value}: give {least} or more"
        for name, least in (("questions", 1), ("question", 0), ("updates", 1), ("top", 1), ("steps", 1))
        if (value := getattr(args, name, None)) is not None and value < least
    ]
    lr = getattr(args, "lr", None)
    if lr is not None and not 0 < lr < float("inf"):
        problems.append(f"--lr {lr}: give a positive number, for example 0.001")
    if lr is not None and getattr(args, "optimizer", None) == "run":
        problems.append("--lr has no effect with --optimizer run, which keeps the run's own: drop one of them")
    if problems:
        raise ConfigError(problems)
    if hasattr(args, "methods"):
        _methods(args)


def _delta(args: argparse.Namespace, out: Path) -> int:
    from agentrl.console import table
    from agentrl.lab.delta import plot_delta, run_delta

    say = _say(args.json)
    job, groups = _groups(args)
    result = run_delta(job, groups, _methods(args), step=_step(args), updates=args.updates, say=say)
    say(f"one update: {result.optimizer}, lr {result.lr:g}" + (f", {result.updates} times" * (result.updates > 1)))
    say(table(result.table()))
    for path in plot_delta(result, out / "delta"):
        say(f"figure: {path}")
    return _done(args, result.to_json())


def _identify(args: argparse.Namespace, out: Path) -> int:
    from agentrl.lab.identify import run_identify

    say = _say(args.json)
    job, groups = _groups(args)
    found = run_identify(job, groups, top=args.top, step=_step(args), say=say)
    say(found.text())
    return _done(args, found.to_json())


def _tokens(args: argparse.Namespace, out: Path) -> int:
    from agentrl.console import colors_on
    from agentrl.errors import ConfigError
    from agentrl.lab.tokens import score_tokens, to_html, to_terminal

    say = _say(args.json)
    job, groups = _groups(args)
    if args.question >= len(groups):
        raise ConfigError(
            [f"--question {args.question}: there are {len(groups)} mixed groups, from 0; raise --questions"]
        )
    tokens, scale = score_tokens(job, groups[args.question])
    say(to_terminal(tokens, scale, color=colors_on()))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "tokens.html"
    page.write_text(to_html(tokens, scale), encoding="utf-8")
    say(f"page: {page}")
    return _done(args, {"tokens": [vars(t) for t in tokens], "scale": scale})


def _spiral(args: argparse.Namespace, out: Path) -> int:
    from agentrl.config.files import load_config
    from agentrl.console import table
    from agentrl.lab.spiral import HARSH, plot_spiral, run_spiral

    say = _say(args.json)
    own = [f"optim.lr={args.lr}"] if args.lr is not None else []
    config = load_config(args.run / "config.yaml", [*HARSH, *args.set, *own]).config
    if config.world is not None and config.world.seed is None:  # another seed must not make another world
        config.world.seed = config.seed
    config.seed = args.seed
    result = run_spiral(config, _checkpoint(args) / "model", out / "spiral", _methods(args), steps=args.steps, say=say)
    say(table(result.table()))
    for path in plot_spiral(result, out / "spiral"):
        say(f"figure: {path}")
    return _done(args, {"rows": result.rows})


def _groups(args: argparse.Namespace) -> tuple[Job, list[Group]]:
    from agentrl.config.files import load_config
    from agentrl.lab.groups import mixed_groups
    from agentrl.train.build import build_job

    config = load_config(args.run / "config.yaml", args.set).config
    checkpoint = _checkpoint(args)
    job = build_job(config, args.run, model_path=checkpoint / "model", say=_say(args.json))
    if args.experiment != "tokens" and args.optimizer == "run":
        job.local.load(checkpoint)  # the optimiser's state, too
    return job, mixed_groups(job, args.questions, seed=args.seed, say=_say(args.json))


def _methods(args: argparse.Namespace) -> list[str]:
    """The names, each once; wrong ones are refused before anything is sampled."""
    from agentrl.lab.methods import known_methods

    return known_methods(args.methods)


def _step(args: argparse.Namespace) -> Step:
    from agentrl.lab.groups import Step

    return Step(args.optimizer, args.lr)


def _checkpoint(args: argparse.Namespace) -> Path:
    from agentrl.runs.checkpoint import checkpoint_at

    return checkpoint_at(args.run, args.step)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda text: print(text, file=sys.stderr)) if quiet else print


def _done(args: argparse.Namespace, result: dict) -> int:
    if args.json:
        from agentrl.console import print_json

        print_json(result)
    return 0
