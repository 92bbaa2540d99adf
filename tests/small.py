"""Whole runs that take a second: a world of a few people and a model of a few thousand weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from agentrl.config import RunConfig

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {
        "device": "cpu",
        "threads": 1,
        "tiny": {"hidden_size": 64, "intermediate_size": 64, "max_positions": 256},
    },
    "world": {"people": 24, "companies": 10, "cities": 8, "regions": 6, "hops": [1]},
    "rollout": {"prompts_per_step": 4, "group_size": 4, "max_tokens_per_turn": 16, "max_context": 160},
    "optim": {"lr": 1e-3},
    "train": {"steps": 2, "mini_batches": 2, "probe_every": 1, "probe_size": 2},
    "eval": {"questions": 0},
    "log": {"name": "a", "checkpoint_every": 0},
}
CLOCKS = {"time", "seconds", "tokens_per_s", "tool_latency_s"}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put over it, part by part."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        inner = out.get(key)
        out[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def small_config(runs_dir: Any, model: Any = None, /, **changes: Any) -> RunConfig:
    """A config of a run that takes a second, under `runs_dir`, of the model folder `model` where one is given.

    `changes` are nested dictionaries.
    """
    tree = merged(SMALL, {"log": {"runs_dir": str(runs_dir)}})
    if model is not None:
        tree["model"]["path"] = str(model)
    return RunConfig.model_validate(merged(tree, changes))


def train_until(
    config: RunConfig, steps: int | None = None, meddle: Callable[[Any], object] = lambda trainer: None
) -> Path:
    """`train_run` that is asked to stop after `steps` steps, as Ctrl-C would; the run directory.

    `meddle` is given the trainer before it starts.
    """
    from agentrl.train import start as run

    class Meddled(run.Trainer):
        def train(self) -> Any:
            meddle(self)
            return super().train()

        def step(self) -> Any:
            record = super().step()
            self.stop_requested |= self.step_number == steps
            return record

    with patch.object(run, "Trainer", Meddled):
        return run.train_run(config, quiet=True).run_dir


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl or evals.jsonl without what a clock has measured."""
    return [
        {k: v for k, v in row.items() if k.partition("/")[0] not in CLOCKS and not k.startswith("t_")} for row in rows
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """Relative path to content of every file under `folder`."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
