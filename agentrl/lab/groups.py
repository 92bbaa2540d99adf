"""Mixed groups to experiment on, and one-step updates that are undone afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentrl.algorithms import advantages as compute_advantages
from agentrl.algorithms import displacement as likelihood_displacement
from agentrl.algorithms import with_answer_weight
from agentrl.batch import TokenBatch, pack
from agentrl.config import AlgorithmConfig, OptimConfig
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.shared.updates import decay_groups
from agentrl.errors import AgentRLError, NonFiniteError
from agentrl.train.build import Job
from agentrl.train.measure import mixed_rows, valid_searches
from agentrl.types import Task, Trajectory

OptimizerName = Literal["sgd", "adam", "run"]
SGD_LR = 1e-3


@dataclass(frozen=True)
class Step:
    """What one update of the lab is.

    sgd: θ − lr · gradient, unclipped, which is the step of the papers' theory (a small step along the gradient).
    adam: a fresh AdamW, whose first step is lr · sign(gradient) in every weight, as the papers' experiments take it.
    run: the run's own optimiser state, learning rate and clipping, so that earlier gradients take part.
    """

    optimizer: OptimizerName = "sgd"
    lr: float | None = None

    def rate(self, optim: OptimConfig) -> float:
        """The learning rate: as given, else `SGD_LR` or the run's."""
        if self.lr is not None:
            return self.lr
        return SGD_LR if self.optimizer == "sgd" else optim.lr


@dataclass
class Group:
    """One question with both correct and incorrect responses."""

    task: Task
    trajectories: list[Trajectory]
    batch: TokenBatch

    def algorithm(self, algorithm: AlgorithmConfig) -> AlgorithmConfig:
        """`algorithm` with what it schedules by the episodes of a step, which are those of this group."""
        loss = with_answer_weight(algorithm.loss, valid_searches(self.trajectories))
        return algorithm.model_copy(update={"loss": loss})

    @property
    def share_correct(self) -> float:
        """p = N⁺/G of docs/algorithms.md."""
        return float(self.batch.correct.float().mean())


def mixed_groups(
    job: Job, n: int, *, seed: int, max_draws: int = 40, say: Callable[[str], None] = print
) -> list[Group]:
    """Sample groups of `rollout.group_size` responses until `n` of them are mixed.

    Raises AgentRLError when `max_draws` times n questions did not give a single one.
    """
    config = job.config
    stream, size = job.stream(seed), config.rollout.group_size
    found: list[Group] = []
    drawn = 0
    with job.pool() as pool:
        player = job.player(pool, seed=seed)
        while len(found) < n and drawn < max_draws * n:
            tasks = stream.take(max(8, n // 2))
            episodes = player.collect(tasks, size, prefix=f"lab{drawn}/")
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
def undone(engine: LocalEngine, step: Step) -> Iterator[None]:
    """Inside, the engine updates as `step` says; afterwards weights, optimiser and counters are as they were."""
    parameters = [p for p in engine.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    kept = engine.optimizer, engine.optim_config, engine.updates, engine.lr_scale
    try:
        _use(engine, step, parameters)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before):
                p.copy_(old)
        engine.optimizer, engine.optim_config, engine.updates, engine.lr_scale = kept


def _use(engine: LocalEngine, step: Step, parameters: list[torch.nn.Parameter]) -> None:
    if step.optimizer == "run":
        run = engine.optimizer
        if not run.state:
            raise AgentRLError("the run's optimiser has no state yet: take a later checkpoint, or another optimizer")
        engine.optimizer = torch.optim.AdamW(decay_groups(parameters, 0.0), fused=True)
        engine.optimizer.load_state_dict(copy.deepcopy(run.state_dict()))
        return
    lr = step.rate(engine.optim_config)
    changes = {"lr": lr, "warmup_steps": 0, "schedule": "constant"}
    if step.optimizer == "sgd":  # clipping would give every question a step of its own size
        changes["max_grad_norm"] = None
        engine.optimizer = torch.optim.SGD(parameters, lr=lr)
    else:
        o = engine.optim_config
        groups = decay_groups(parameters, o.weight_decay)
        engine.optimizer = torch.optim.AdamW(groups, lr=lr, betas=o.betas, fused=True)
    engine.optim_config = engine.optim_config.model_copy(update=changes)
    engine.lr_scale = 1.0


def displacement(
    engine: LocalEngine,
    batch: TokenBatch,
    algorithm: AlgorithmConfig,
    *,
    step: Step | None = None,
    updates: int = 1,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log π of every action token before and after `updates` full-batch updates of the current weights: two (B, S).

    The engine is left as it was, so that every method starts from the same weights and optimiser state. Where the loss
    has a KL term, its reference is the engine's: the checkpoint itself, or with LoRA the base model.
    """
    nthr = algorithm.nthr if algorithm.nthr.enabled else None
    scored = engine.score(batch, temperature=temperature, nthr=nthr)
    adv = compute_advantages(algorithm.name, batch.rewards, batch.group_ids, k=algorithm.k, correct=batch.correct)
    adv_BS = adv[:, None] * batch.action_mask
    reference = None
    if algorithm.loss.kl_coef:
        reference = engine.score(batch, temperature=temperature, reference=True).logprobs
    if scored.nthr_factor is not None:
        adv_BS = adv_BS * scored.nthr_factor
    with undone(engine, step or Step()):
        for _ in range(updates):
            done = engine.update(
                batch, adv_BS, scored.logprobs, loss=algorithm.loss, temperature=temperature,
                reference_logprobs=reference,
            )  # fmt: skip
            if "nonfinite" in done:
                raise NonFiniteError("the gradient is not finite: the checkpoint has diverged, take an earlier one")
        after = engine.score(batch, temperature=temperature).logprobs
    return scored.logprobs, after


def delta_of(batch: TokenBatch, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Δ(x) of NTHR §4.2 over the correct responses of one group: per token, and per response."""
    rows = batch.correct & mixed_rows(batch)
    moved = likelihood_displacement(before, after, batch.action_mask, batch.group_ids, rows)
    return float(moved.row_per_token.mean()), float(moved.change.sum(1).mean())
