"""The default job's sampling rate and step rate, part by part, through the real environment.

Trains `search_tiny` for a while first, so that episodes have the lengths of a working agent, then measures steps.

usage: python scripts/bench_step.py [--steps 15] [--before 25] [--threads 1] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

PARTS = ("t_rollout_s", "t_score_s", "t_update_s", "t_delta_s", "t_step_s")


def measure(seed: int, threads: int, before: int, steps: int) -> dict[str, float]:
    """Medians over `steps` steps after `before` steps of training. Wall seconds, and CPU seconds of the process."""
    from agentrl.config.files import load_config
    from agentrl.runs.log import RunLog
    from agentrl.train.build import build_job
    from agentrl.train.trainer import Trainer
    from agentrl.train.warmstart import warm_start

    with tempfile.TemporaryDirectory() as folder:
        sets = [f"seed={seed}", f"model.threads={threads}", f"log.runs_dir={folder}", "eval.questions=0"]
        config = load_config("search_tiny", sets).config
        with RunLog.create(folder, "bench", config) as run:
            job = build_job(config, Path(folder), say=lambda line: None)
            assert config.warm_start is not None
            warm_start(job.engine, job.world, config.warm_start, seed, say=lambda line: None)
            trainer = Trainer(job, run)
            gc.collect()
            gc.freeze()  # as `agentrl.train.start` does
            for _ in range(before):
                trainer.step()
            rows, cpu = [], []
            for _ in range(steps):
                start, tokens = time.process_time(), job.engine.sampled_tokens
                metrics = trainer.step().metrics
                cpu.append(time.process_time() - start)
                rows.append(metrics | {"sampled": job.engine.sampled_tokens - tokens})
            trainer.close()
    out = {part: statistics.median(r.get(part, 0.0) for r in rows) for part in PARTS}
    out["sampled_tokens"] = statistics.median(r["sampled"] for r in rows)
    out["sampling_tokens_per_s"] = statistics.median(r["sampled"] / r["t_rollout_s"] for r in rows)
    out["step_tokens_per_s"] = statistics.median(r["sampled"] / r["t_step_s"] for r in rows)
    out["step_cpu_s"] = statistics.median(cpu)
    out["reward"] = statistics.mean(r["reward"] for r in rows)
    out["mismatch_max"] = max(r["mismatch_max"] for r in rows)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--before", type=int, default=25)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.seed, args.threads, args.before, args.steps)
    if args.json:
        print(json.dumps(result))
        return
    from agentrl.console import table

    rows = [["default job, medians", "measured", "to reach"]]
    rows += [
        ["sampling, tokens/s", f"{result['sampling_tokens_per_s']:,.0f}", "19,000"],
        ["whole step, sampled tokens/s", f"{result['step_tokens_per_s']:,.0f}", "6,000"],
        ["|log π sampled - scored|, largest", f"{result['mismatch_max']:.1e}", "1e-3"],
        ["step, CPU s", f"{result['step_cpu_s']:.3f}", ""],
    ]
    rows += [[part.removeprefix("t_").removesuffix("_s") + ", s", f"{result[part]:.3f}", ""] for part in PARTS]
    print(table(rows))


if __name__ == "__main__":
    main()
