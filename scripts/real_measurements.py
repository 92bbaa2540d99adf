"""The papers' measurements on the real model: runs that go on where they were stopped, and their table.

    python scripts/real_measurements.py RUN --seeds 0 1 2      # RUN: a finished `agentrl real` run, with step 0 kept
    python scripts/real_measurements.py RUN --plan             # the commands, nothing is run

    python scripts/real_measurements.py RUN --plan           # the commands alone
NTHR and LLDS at a moderate and a harsh learning rate. Every training keeps all its responses' figures in its own run
directory, which becomes a recorded run for the monitors; `table.json` has what was read from them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from agentrl.runs.checkpoint import list_checkpoints
from agentrl.runs.read import read_alarms, read_info, read_metrics

METHODS = {
    "grpo": ["algorithm.nthr.enabled=false"],
    "nthr": ["algorithm.nthr.enabled=true"],
    "llds": ["algorithm.nthr.enabled=false", "algorithm.loss.llds.enabled=true"],
}
RATES = {"moderate": 3e-6, "harsh": 3e-5}


def main() -> int:
    """Do what is left to do, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="default: RUN/measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--questions", type=int, default=40, help="mixed groups of Δ and GWHES")
    parser.add_argument("--plan", action="store_true", help="print the commands alone")
    args = parser.parse_args()
    out = args.out or args.run / "measurements"
    start = dict(list_checkpoints(args.run)).get(0)
    if start is None:
        parser.error(f"{args.run} has no checkpoint of step 0, the warm-started model")
    if not args.plan:
        out.mkdir(parents=True, exist_ok=True)
    for name in ("delta", "identify"):
        figures = out / name
        words = ["lab", name, args.run, "--step", 0, "--questions", args.questions, "--out", figures, "--json"]
        if args.plan or not (out / f"{name}.txt").is_file():
            said = call(words, args.plan)
            if said is not None:
                (out / f"{name}.txt").write_text(said)
    rows = []
    for method, rate, seed in ((m, r, s) for s in args.seeds for r in RATES for m in METHODS):
        name = f"{method}-{rate}-s{seed}"
        train(args.run / "config.yaml", start / "model", out, name, method, rate, seed, args)
        if not args.plan and (out / name).is_dir():
            rows.append(row_of(out / name, method, rate, seed))
            (out / "table.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return 0


def train(
    config: Path, model: Path, out: Path, name: str, method: str, rate: str, seed: int, args: argparse.Namespace
) -> None:
    """Begin the training of this name, or go on with it. LLDS acts from a batch's second update on: all make two."""
    path = out / name
    if path.is_dir() and list_checkpoints(path):
        if read_info(path).status != "finished":
            call(["resume", path], args.plan)
        return
    sets = [f"model.path={model}", "warm_start=null", f"seed={seed}", f"world.seed={seed_of(config)}",
            f"log.runs_dir={out}", f"log.name={name}", f"optim.lr={RATES[rate]}", f"train.steps={args.steps}",
            "train.mini_batches=2", "train.delta_every=1", *METHODS[method]]  # fmt: skip
    call(["train", config, "--force", *(w for change in sets for w in ("--set", change))], args.plan)


def seed_of(config: Path) -> int:
    """The seed of the run's world: the same questions are held out."""
    from agentrl.config.files import load_config

    run = load_config(config).config
    return run.seed if run.world is None or run.world.seed is None else run.world.seed


def call(words: list[object], plan: bool) -> str | None:
    """Run `agentrl WORDS`; its output. None where it is only printed."""
    command = [sys.executable, "-m", "agentrl", *map(str, words)]
    print("+", shlex.join(["agentrl", *command[3:]]), flush=True)
    if plan:
        return None
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def row_of(path: Path, method: str, rate: str, seed: int) -> dict[str, object]:
    """What a training's own directory says of it."""
    rows = read_metrics(path)
    rewards = [r["reward"] for r in rows if "reward" in r]
    tail = rewards[-5:]
    found = [a for a in read_alarms(path) if a.get("level") != "info"]
    return {
        "method": method, "rate": rate, "seed": seed, "steps": len(rows),
        "responses a step": max((int(r.get("responses", 0)) for r in rows), default=0),
        "reward, first 5": sum(rewards[:5]) / max(1, len(rewards[:5])), "peak": max(rewards, default=float("nan")),
        "reward, last 5": sum(tail) / max(1, len(tail)),
        "alarms": "; ".join(f"{a['rule']} {a['level']} at {a['step']}" for a in found) or "none",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
