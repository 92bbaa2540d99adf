"""Step times of the cluster engine, in turns and asynchronous, on the built-in world without a GPU.

    .venv-dist/bin/python scripts/bench_cluster.py [--steps 8] [--rounds 2] [--tool 1.0]

Sampling and training (scores, updates, hand-over) are given equal time. A search takes `--tool` seconds in which nobody
computes, as with a real retriever: with few cores the two can only overlap where one of them waits. Then the number of
epochs is found with which training takes as long. Both modes run on the same workers, `--rounds` times each by turns.
For an idle machine. Skipped, with the reason, where Ray or OpenRLHF are not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

BALANCED = 0.15  # sampling may differ from training by this share
PHASES = ("t_rollout_s", "t_score_s", "t_update_s", "step_s")


class SlowTool:
    """An environment whose steps take `seconds` longer."""

    def __init__(self, env: Any, seconds: float) -> None:
        self.env, self.seconds = env, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Any:
        return self

    async def areset(self, **options: Any) -> Any:
        return await self.env.unwrapped.areset(**options)

    async def astep(self, action: str) -> Any:
        await asyncio.sleep(self.seconds)
        return await self.env.unwrapped.astep(action)


class Bench:
    """One cluster; `measure` trains a few steps on it in either mode."""

    def __init__(self, folder: Path, tool: float) -> None:
        from agentrl.config.files import load_config
        from agentrl.train.build import build_job

        self.config = load_config(
            "search_tiny",
            [
                "engine=openrlhf", "warm_start=null", "eval.questions=0", f"log.runs_dir={folder}",
                "log.checkpoint_every=0", "train.delta_every=0", "train.probe_every=0", "rollout.prompts_per_step=12",
                "algorithm.loss.tis_cap=2.0", "train.epochs=20", "train.steps=1000000", "optim.lr=1e-6",
            ],
        ).config  # fmt: skip
        self.folder, self.count = folder, 0
        self.job = build_job(self.config, folder, say=print)
        plain = self.job.make_env
        self.job.make_env = lambda: SlowTool(plain(), tool)  # type: ignore[assignment, return-value]

    def measure(self, steps: int, *, asynchronous: bool) -> dict[str, float]:
        """Mean seconds of each phase, and of a whole step; a first step is not counted."""
        from agentrl.runs.log import RunLog
        from agentrl.runs.read import read_metrics
        from agentrl.train.trainer import Trainer

        self.count += 1
        self.config.openrlhf.asynchronous = asynchronous
        with RunLog.create(self.folder, f"run-{self.count}", self.config) as run:
            trainer = Trainer(self.job, run)
            try:
                trainer.step()
                start = time.perf_counter()
                for _ in range(steps):
                    trainer.step()
                whole = (time.perf_counter() - start) / steps
            finally:
                trainer.close()
            rows = read_metrics(run.path)[1:]
        return {k: mean(r[k] for r in rows) for k in PHASES[:-1]} | {"step_s": whole}

    def balance(self) -> None:
        """Find the number of epochs with which training takes as long as sampling."""
        self.measure(1, asynchronous=False)  # everything is warm now
        for _ in range(4):
            row = self.measure(3, asynchronous=False)
            epochs = self.config.train.epochs
            print(f"{epochs} epochs: {line(row)}; sampling is {row['t_rollout_s'] / training(row):.2f} x training")
            if abs(row["t_rollout_s"] / training(row) - 1) <= BALANCED / 2:
                break
            fit = (row["t_rollout_s"] - row["t_score_s"]) * epochs / row["t_update_s"]
            self.config.train.epochs = max(1, round(fit))


def training(row: dict[str, float]) -> float:
    """Seconds of a step besides sampling."""
    return row["t_score_s"] + row["t_update_s"]


def line(row: dict[str, float]) -> str:
    """A row of phases."""
    return "  ".join(f"{k.removeprefix('t_').removesuffix('_s')} {row[k]:.2f} s" for k in PHASES)


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tool", type=float, default=1.0, help="seconds that a search takes")
    args = parser.parse_args()
    missing = [name for name in ("ray", "deepspeed", "vllm", "openrlhf") if find_spec(name) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not installed (scripts/setup_openrlhf_cpu.sh)")
        return
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.tool)
        try:
            bench.balance()
            modes: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            for _ in range(args.rounds):
                for mode, rows in modes.items():
                    rows.append(bench.measure(args.steps, asynchronous=mode))
                    print(f"{'asynchronous' if mode else 'in turns':13}{line(rows[-1])}", flush=True)
        finally:
            bench.job.engine.close()
    turns, ahead = ({k: mean(r[k] for r in rows) for k in PHASES} for rows in modes.values())
    share = turns["t_rollout_s"] / training(turns)
    print(f"in turns, mean: {line(turns)}; sampling is {share:.2f} x training")
    print(f"asynchronous, mean: {line(ahead)}; {turns['step_s'] / ahead['step_s']:.2f} x as fast")
    if abs(share - 1) > BALANCED:
        print(f"not balanced: sampling and training differ by more than {BALANCED:.0%}, the ratio says little")


if __name__ == "__main__":
    main()
