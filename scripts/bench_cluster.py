"""Step times of the cluster engine, in turns and asynchronous, on the built-in world without a GPU.

    .venv-dist/bin/python scripts/bench_cluster.py [--steps 8] [--tool 0.4]

`--tool` is the time a search takes, in seconds: with it sampling is mostly waiting, as with a real retriever, and can
overlap with training on few cores. Skipped, with the reason, where Ray or OpenRLHF are not installed.
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


def measure(steps: int, tool: float, asynchronous: bool, folder: Path) -> dict[str, float]:
    """Mean seconds of each phase over all steps but the first two."""
    from agentrl.config_io import load_config
    from agentrl.job import build_job
    from agentrl.runlog import RunLog, read_metrics
    from agentrl.trainer import Trainer

    name = "async" if asynchronous else "turns"
    changes = [
        "engine=openrlhf", "warm_start=null", f"train.steps={steps}", "eval.questions=0", f"log.runs_dir={folder}",
        f"log.name={name}", "log.checkpoint_every=0", "train.delta_every=0", "train.probe_every=0",
        "rollout.prompts_per_step=12", "algorithm.loss.tis_cap=2.0", f"openrlhf.asynchronous={asynchronous}",
        "algorithm.loss.entropy_coef=0.001", "train.epochs=4",
    ]  # fmt: skip
    config = load_config("search_tiny", changes).config
    with RunLog.create(folder, name, config) as run:
        job = build_job(config, run.path, say=lambda line: None)
        plain = job.make_env
        job.make_env = lambda: SlowTool(plain(), tool)  # type: ignore[assignment, return-value]
        trainer = Trainer(job, run)
        try:
            start = time.perf_counter()
            trainer.step()
            trainer.step()
            start = time.perf_counter()
            while trainer.step_number < steps:
                trainer.step()
            whole = (time.perf_counter() - start) / (steps - 2)
        finally:
            trainer.close()
            job.engine.close()
        rows = read_metrics(run.path)[2:]
    return {k: mean(r[k] for r in rows) for k in ("t_rollout_s", "t_score_s", "t_update_s")} | {"step": whole}


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tool", type=float, default=0.4)
    args = parser.parse_args()
    missing = [name for name in ("ray", "deepspeed", "vllm", "openrlhf") if find_spec(name) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not installed (scripts/setup_openrlhf_cpu.sh)")
        return
    with tempfile.TemporaryDirectory() as folder:
        both = [measure(args.steps, args.tool, a, Path(folder)) for a in (False, True)]
    for name, row in zip(("in turns", "asynchronous"), both):
        print(f"{name:13}" + "  ".join(f"{k} {v:.2f} s" for k, v in row.items()))
    print(f"asynchronous is {both[0]['step'] / both[1]['step']:.2f} x as fast")


if __name__ == "__main__":
    main()
