"""Start or resume a run: from a config to a finished run directory. What the CLI and the quickstart call."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from agentrl.checkpoint import latest_checkpoint
from agentrl.config import RunConfig
from agentrl.config_io import load_config
from agentrl.console import Progress
from agentrl.errors import RunError
from agentrl.job import build_job
from agentrl.runlog import RunLog
from agentrl.trainer import Trainer, TrainResult
from agentrl.types import StepRecord
from agentrl.warmstart import warm_start
from agentrl.writers import make_writers


@dataclass
class FinishedRun:
    """Where a run is and how it ended."""

    run_dir: Path
    result: TrainResult


def train_run(config: RunConfig, *, force: bool = False, quiet: bool = False) -> FinishedRun:
    """Train `config` from the start in a new run directory."""
    say = _say(quiet)
    name = config.log.name or f"{config.name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = RunLog.create(config.log.runs_dir, name, config, force=force, argv=sys.argv)
    say(f"run directory: {run.path}")
    with run:
        job = build_job(config, run.path, say=say)
        say(
            f"{len(job.train_tasks)} training and {len(job.test_tasks)} held-out questions; "
            f"{sum(p.numel() for p in job.engine.model.parameters()):,} parameters on {job.engine.device}"
        )
        if config.warm_start is not None:
            progress = Progress(quiet=quiet)
            measured = warm_start(job.engine, job.world, config.warm_start, config.seed, progress.note)
            progress.close()
            run.update_meta({"warm_start": measured})
            say(f"warm start: {measured['seconds']:.0f} s")
        return _train(Trainer, job, run, None, quiet)


def resume_run(run_dir: Path, *, quiet: bool = False) -> FinishedRun:
    """Continue a stopped or killed run from its last good checkpoint."""
    config = load_config(run_dir / "config.yaml", []).config
    run = RunLog.open(run_dir)
    with run:
        found = latest_checkpoint(run_dir)
        if found is None:
            raise RunError(
                f"{run_dir} has no checkpoint to resume from; start it again: agentrl train {run_dir}/config.yaml"
            )
        path, state = found
        run.truncate_after(state["step"])
        job = build_job(config, run.path, model_path=path / "model", say=_say(quiet))
        return _train(Trainer, job, run, (path, state), quiet)
