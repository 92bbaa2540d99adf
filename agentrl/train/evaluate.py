"""Held-out evaluation: the same rollouts as in training, at the evaluation's own temperature."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.rollouts.play import EnvPool, collect
from agentrl.train.build import Job
from agentrl.types import Task, Trajectory


@dataclass
class EvalResult:
    """`summary` is one row of evals.jsonl; `trajectories` are all episodes played."""

    summary: dict[str, Any]
    trajectories: list[Trajectory]


def evaluate(
    job: Job, pool: EnvPool, *, step: int, tasks: Sequence[Task] | None = None, split: str = "test"
) -> EvalResult:
    """Play `config.eval.samples` episodes of each of the first `config.eval.questions` tasks.

    `em` is the mean reward over responses that did not fail; failed rollouts are counted beside it.
    """
    config = job.config
    chosen = list(tasks if tasks is not None else job.test_tasks)[: config.eval.questions]
    start = time.perf_counter()
    episodes = collect(
        job.engine,
        pool,
        chosen,
        config.eval.samples,
        chat=job.chat,
        config=config.rollout,
        prefix=f"eval{step}/",
        seed=config.seed,
        temperature=config.eval.temperature,
        concurrency=config.eval.batch,
        correct_threshold=config.algorithm.correct_threshold,
    )
    good = [t for t in episodes if t.error is None]
    summary: dict[str, Any] = {"step": step, "split": split, "n": len(chosen), "failed": len(episodes) - len(good)}
    if good:
        summary["em"] = sum(t.reward for t in good) / len(good)
        summary["turns"] = sum(len(t.turns) for t in good) / len(good)
        summary["response_length"] = sum(t.action_tokens for t in good) / len(good)
    for key, name in (("hops", "em_{}hop"), ("level", "em_level_{}")):
        rewards: dict[int, list[float]] = defaultdict(list)
        for i, t in enumerate(episodes):
            value = chosen[i // config.eval.samples].options.get(key)
            if isinstance(value, int) and t.error is None:
                rewards[value].append(t.reward)
        summary |= {name.format(value): sum(r) / len(r) for value, r in sorted(rewards.items())}
    summary["seconds"] = time.perf_counter() - start
    return EvalResult(summary, episodes)
