"""Mixed groups to experiment on, and one-step updates that are undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.algorithms import advantages as compute_advantages
from agentrl.batch import TokenBatch, pack
from agentrl.config import AlgorithmConfig
from agentrl.data import TaskStream
from agentrl.engines.local.engine import LocalEngine
from agentrl.errors import AgentRLError
from agentrl.job import Job
from agentrl.metrics import mixed_rows
from agentrl.rollouts.play import EnvPool, collect
from agentrl.types import Task, Trajectory


@dataclass
class Group:
    """One question with both correct and incorrect responses."""

    task: Task
    trajectories: list[Trajectory]
    batch: TokenBatch

    @property
    def share_correct(self) -> float:
        """p of METHODS §1."""
        return float(self.batch.correct.float().mean())


def mixed_groups(
    job: Job, n: int, *, seed: int, max_draws: int = 40, say: Callable[[str], None] = print
) -> list[Group]:
    """Sample groups of `rollout.group_size` responses until `n` of them are mixed.

    Raises AgentRLError when `max_draws` times n questions did not give a single one.
    """
    config = job.config
    stream, size = TaskStream(job.train_tasks, seed), config.rollout.group_size
    found: list[Group] = []
    drawn = 0
    with EnvPool(job.make_env) as pool:
        while len(found) < n and drawn < max_draws * n:
            tasks = stream.take(max(8, n // 2))
            episodes = collect(
                job.engine,
                pool,
                tasks,
                size,
                chat=job.chat,
                config=config.rollout,
                prefix=f"lab{drawn}/",
                seed=seed,
                correct_threshold=config.algorithm.correct_threshold,
            )
            drawn += len(tasks)
            for i, task in enumerate(tasks):
                group = [t for t in episodes[i * size : (i + 1) * size] if t.error is None]
                if len({t.correct for t in group}) == 2 and len(found) < n:
                    found.append(Group(task, group, pack(group, job.engine.tokenizer.pad_token_id)))
            say(f"{len(found)} of {n} mixed groups after {drawn} questions")
    if not found:
        raise AgentRLError(
            f"none of {drawn} questions gave a group with both correct and incorrect responses; "
            "use a model that answers some of them (between 10 % and 90 %), or a larger rollout.group_size"
        )
    return found


@contextmanager
def undone(engine: LocalEngine) -> Iterator[None]:
    """Weights, optimiser state and the update counter are put back at the end."""
    parameters = [p for p in engine.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    updates = engine.updates
    engine.optimizer.state.clear()
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before):
                p.copy_(old)
        engine.optimizer.state.clear()
        engine.updates = updates
        if engine.fast is not None:
            engine.fast.refresh()


def displacement(
    engine: LocalEngine, batch: TokenBatch, algorithm: AlgorithmConfig, *, updates: int = 1, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π of every action token before and after `updates` full-batch updates of the current weights: two (B, S)."""
    nthr = algorithm.nthr if algorithm.nthr.enabled else None
    scored = engine.score(batch, temperature=temperature, nthr=nthr)
    adv = compute_advantages(algorithm.name, batch.rewards, batch.group_ids, k=algorithm.k, correct=batch.correct)
    adv_BS = adv[:, None] * batch.action_mask
    if scored.nthr_factor is not None:
        adv_BS = adv_BS * scored.nthr_factor
    with undone(engine):
        for _ in range(updates):
            engine.update(batch, adv_BS, scored.logprobs, loss=algorithm.loss, temperature=temperature)
        after = engine.score(batch, temperature=temperature).logprobs
    return scored.logprobs, after


def delta_of(batch: TokenBatch, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Δ(x) of METHODS §4 over the correct responses of one group: per token, and per response."""
    rows = batch.correct & mixed_rows(batch)
    change = ((after - before) * batch.action_mask)[rows]
    tokens = batch.action_mask[rows].sum(1)
    return float((change.sum(1) / tokens).mean()), float(change.sum(1).mean())
