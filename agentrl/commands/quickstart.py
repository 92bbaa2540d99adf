"""`agentrl quickstart`: the default job, from nothing to a trained agent."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.config import RunConfig

CONFIG = "search_tiny"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the world, the model and the run (default: 0)"
    )
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where the run goes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, show."""
    result = quickstart(args.seed, args.runs_dir, quiet=args.json)
    if args.json:
        from agentrl.console import print_json

        print_json({k: result[k] for k in ("em_before", "em_after", "seconds", "run_dir")})
    return 0


def quickstart(seed: int = 0, runs_dir: str = "runs", *, quiet: bool = False) -> dict[str, Any]:
    """Run `configs/search_tiny.yaml` with `seed`; prints the table, three episodes and the next commands.

    Returns {"em_before", "em_after", "seconds", "run_dir"} and what else was measured. Takes about a minute and a half
    on two CPU cores.
    """
    from agentrl.commands.train import need_packages
    from agentrl.config.files import load_config

    start = time.perf_counter()
    config = load_config(CONFIG, [f"seed={seed}", f"log.runs_dir={runs_dir}"]).config
    need_packages("agentrl quickstart", config)
    from agentrl.train.start import train_run

    done = train_run(config, quiet=quiet)
    if done.result.status != "finished":
        raise KeyboardInterrupt  # the run has been saved and has said how to go on
    before, after = done.result.evaluations[0], done.result.evaluations[-1]
    seconds = time.perf_counter() - start
    out = {
        "em_before": before["em"],
        "em_after": after["em"],
        "seconds": round(seconds, 1),
        "run_dir": str(done.run_dir),
    }
    if not quiet:
        print(_table(before, after))
        for line in episodes(done.run_dir, config):
            print(line)
        print(_next_commands(done.run_dir, seconds))
    return out


def _table(before: dict[str, Any], after: dict[str, Any]) -> str:
    rows = [("held-out exact match", "before RL", "after RL")]
    names = {"em": "all questions", "em_1hop": "one hop", "em_2hop": "two hops", "turns": "turns per episode"}
    for key, name in names.items():
        if key in before and key in after:
            rows.append((name, f"{before[key]:.2f}", f"{after[key]:.2f}"))
    lines = [f"  {a:<22}{b:>11}{c:>11}" for a, b, c in rows]
    lines.insert(1, "  " + "─" * 44)
    return "\n".join(["", *lines, ""])


def episodes(run_dir: Path, config: RunConfig) -> list[str]:
    """Three held-out episodes of the last evaluation, as they were played."""
    from agentrl.runs.read import read_eval_rollouts

    out = []
    for row in read_eval_rollouts(run_dir)[:3]:
        verdict = "correct" if row["correct"] else f"wrong, expected {row['task'].get('golden_answers')}"
        out.append(f"  ── {row['task'].get('question', '')}   [{verdict}]")
        for turn in row["turns"]:
            out.append(f"     model  {turn['action'].strip()}")
            if turn["observation"].strip():
                out.append(f"     search {_short(turn['observation'])}")
        out.append("")
    return out


def _short(text: str, limit: int = 150) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _next_commands(run_dir: Path, seconds: float) -> str:
    from agentrl.errors import command

    return "\n".join(
        [
            f"  {seconds:.0f} s in all. Run directory: {run_dir}",
            "  Next:",
            f"    {command('rollouts', 'show', run_dir, '--worst', 3)}     # what it still gets wrong",
            f"    {command('eval', run_dir)}                        # evaluate again",
            "    agentrl dashboard                             # watch runs in the browser",
            "    agentrl env play agentrl/Search-v0            # be the agent yourself",
            "    agentrl train search_tiny --set algorithm.nthr.enabled=false   # plain GRPO, to compare",
        ]
    )
