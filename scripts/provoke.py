"""Provoke one cause of a collapse after another in the tiny search agent, and record what the monitors saw.

    python scripts/provoke.py --start MODEL_FOLDER --out tests/monitors/data/causes [--only nan,...] [--at 25]

`--start` is a trained model folder (the `model` of a checkpoint of search_tiny): there is a reward to lose. From
step `--at` on one thing is broken; everything before is the same in all runs. One CSV per cause, canonical names.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch

from agentrl.config.files import load_config
from agentrl.data.tasks import Task, TaskStream
from agentrl.engines.local.qwen2 import FastQwen2
from agentrl.envs.search import SearchEnv
from agentrl.runs.read import read_metrics
from agentrl.train import start

LEFT_OUT = ("time", "tokens", "seconds")


class Switch:
    """Whether the cause is on: the trainer turns it at its step, the patched parts ask."""

    on = False
    solved: ClassVar[dict[str, Task]] = {}  # questions that a whole group has answered, before that step


def empty(env: Any, query: str, hits: Any, latency: float) -> tuple[Any, float]:
    """A retriever that finds nothing."""
    return (), latency


def replaced(env: Any, query: str, hits: Any, latency: float) -> tuple[Any, float]:
    """Passages of another index: the first hits that were ever seen, whatever is asked."""
    if not hasattr(Switch, "kept"):
        Switch.kept = hits  # type: ignore[attr-defined]
    return Switch.kept, latency  # type: ignore[attr-defined]


def patched_found(change: Callable[..., tuple[Any, float]]) -> Any:
    """SearchEnv._found with what `change` makes of the hits."""
    real = SearchEnv._found

    def found(self: Any, query: str, hits: Any, latency: float) -> Any:
        if Switch.on:
            hits, latency = change(self, query, hits, latency)
        return real(self, query, hits, latency)

    return patch.object(SearchEnv, "_found", found)


def shuffled() -> Any:
    """Gold answers of other questions."""
    real, seen = SearchEnv._answered, []

    def answered(self: Any, parsed: Any) -> Any:
        seen.append(self._golden)
        if Switch.on:
            self._golden = random.Random(len(seen)).choice(seen)
        return real(self, parsed)

    return patch.object(SearchEnv, "_answered", answered)


def hackable() -> Any:
    """A reward of 1 for any answer of one word, right or wrong."""
    real = SearchEnv._answered

    def answered(self: Any, parsed: Any) -> Any:
        obs, reward, terminated, truncated, info = real(self, parsed)
        return obs, (1.0 if Switch.on and parsed.content.strip() else reward), terminated, truncated, info

    return patch.object(SearchEnv, "_answered", answered)


def larger_rate(trainer: Any) -> None:
    """Learning rate x 10."""
    trainer.engine.lr_scale = 10.0


def not_a_number(trainer: Any) -> None:
    """One weight is NaN, and stays so."""
    with torch.no_grad():
        next(trainer.engine.model.parameters()).view(-1)[0] = float("nan")


def sharpened(trainer: Any) -> None:
    """The sampler computes something else than the trainer: its logits are a quarter larger."""
    sampler = trainer.engine.sampler
    real = sampler.next_logits
    sampler.next_logits = lambda *a: 1.25 * real(*a)


def stale(trainer: Any) -> None:
    """The sampler keeps the weights of this step: it is not given new ones."""
    frozen = FastQwen2(copy.deepcopy(trainer.engine.model))
    frozen.refresh()
    trainer.engine.sampler.next_logits = frozen.next_logits


def certain(trainer: Any) -> None:
    """The entropy bonus has the wrong sign: the policy is paid for being sure."""
    loss = trainer.config.algorithm.loss.model_copy(update={"entropy_coef": -0.3})
    algorithm = trainer.config.algorithm.model_copy(update={"loss": loss})
    trainer.config = trainer.config.model_copy(update={"algorithm": algorithm})


def exhausted(trainer: Any) -> None:
    """The same few questions at every step, which are solved already."""
    trainer.stream = TaskStream(list(Switch.solved.values())[: trainer.config.rollout.prompts_per_step], seed=0)


def short(trainer: Any) -> None:
    """Six tokens a turn."""
    config = trainer.player.config.model_copy(update={"max_tokens_per_turn": 6})
    trainer.player = dataclasses.replace(trainer.player, config=config)


Cause = tuple[Callable[[], Any] | None, Callable[[Any], None] | None]
CAUSES: dict[str, Cause] = {
    "control": (None, None),
    "retriever_empty": (lambda: patched_found(empty), None),
    "passages_replaced": (lambda: patched_found(replaced), None),
    "lr_x10": (None, larger_rate),
    "nan": (None, not_a_number),
    "sampler_differs": (None, sharpened),
    "answers_shuffled": (shuffled, None),
    "hackable_reward": (hackable, None),
    "short_turns": (None, short),
    "stale_weights": (None, stale),
    "entropy_bonus_reversed": (None, certain),
    "questions_exhausted": (None, exhausted),
}


def record(cause: str, start_model: Path, folder: Path, steps: int, at: int) -> list[dict[str, Any]]:
    """Train with the cause and return the rows of metrics.jsonl."""
    context, disturb = CAUSES[cause]
    overrides = [f"model.path={start_model}", "warm_start=null", f"train.steps={steps}", "eval.questions=0"]
    overrides += ["log.checkpoint_every=0", f"log.runs_dir={folder}", f"log.name={cause}", "model.threads=1"]
    overrides += ["rollout.prompts_per_step=12", "log.rollout_groups=0", "algorithm.nthr.enabled=false"]
    config = load_config("search_tiny", overrides).config
    Switch.on, Switch.solved = False, {}

    class Disturbed(start.Trainer):
        def rollouts(self, n: int) -> Any:
            found = super().rollouts(n)
            for group, task in found.task_of.items():
                if all(t.correct for t in found.all if t.group_id == group):
                    Switch.solved[task.id] = task
            return found

        def step(self) -> Any:
            if self.step_number == at:
                Switch.on = True
                if disturb is not None:
                    disturb(self)
            return super().step()

    with patch.object(start, "Trainer", Disturbed):
        try:
            if context is None:
                start.train_run(config, quiet=True, force=True)
            else:
                with context():
                    start.train_run(config, quiet=True, force=True)
        except Exception as error:  # a cause may end its run: what it wrote until then is the record
            print(f"{cause}: ended by {type(error).__name__}: {error}")
    return read_metrics(folder / cause)


def write(rows: list[dict[str, Any]], file: Path) -> None:
    """Canonical names, four digits; what was not finite is `nan`."""
    for row in rows:
        row.update({name: float("nan") for name in row.pop("nonfinite", [])})
    names = ["step", *sorted({k for row in rows for k in row} - {"step", *LEFT_OUT})]
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(names)
        for row in rows:
            values = (row.get(name) for name in names)
            out.writerow(["" if v is None else f"{v:.4g}" if isinstance(v, float) else v for v in values])


def main() -> None:
    """Record what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/provoked"))
    parser.add_argument("--only", default=",".join(CAUSES))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--at", type=int, default=25)
    args = parser.parse_args()
    for cause in args.only.split(","):
        rows = record(cause, args.start, args.work, args.steps, args.at)
        if rows:
            write(rows, args.out / f"{cause}.csv")
        print(f"{cause}: {len(rows)} steps", flush=True)


if __name__ == "__main__":
    main()
