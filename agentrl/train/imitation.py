"""Supervised learning on demonstrations with any model: what they say is made likely, token by token.

The demonstrations are trajectories, packed as those of a rollout: the loss is the mean negative log-likelihood of the
tokens that the model itself is to sample, `action_mask`, and of no other. It is computed by the engine's own forward
pass, so that adapters, precision and heads are those of reinforcement learning.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch

from agentrl.algorithms.head import blocks
from agentrl.batch import TokenBatch, micro_batches, pack
from agentrl.config import WarmStartConfig
from agentrl.engines.local.engine import LocalEngine
from agentrl.types import Trajectory

REPORT_EVERY = 10  # optimiser steps
LR, LORA_LR = 2e-5, 2e-4  # where the config leaves it open
LARGEST_HELD_OUT = 32


def split(demos: Sequence[Trajectory], share: float, rng: random.Random) -> tuple[list[Trajectory], list[Trajectory]]:
    """(to learn from, held out): `share` of them, at most LARGEST_HELD_OUT, are held out; at least one is learned."""
    n = min(round(len(demos) * share), LARGEST_HELD_OUT, len(demos) - 1)
    order = list(demos)
    rng.shuffle(order)
    return order[n:], order[:n]


def imitate(
    engine: LocalEngine,
    demos: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
    config: WarmStartConfig,
    rng: random.Random,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Train the engine's model on `demos`; steps, loss, seconds, and on `held_out` loss and token accuracy."""
    start = time.perf_counter()
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    lr = config.lr or (LR if engine.config.lora is None else LORA_LR)
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    batches = _epochs(len(demos), config.batch, config.epochs, rng)
    warm = min(10, len(batches) // 4 + 1)
    loss = float("nan")
    for step, chosen in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / warm) * (1 - 0.9 * (step - 1) / len(batches))
        loss = _gradient(engine, pack([demos[i] for i in chosen]))
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % REPORT_EVERY == 0 or step == len(batches):
            say(f"demonstrations: step {step}/{len(batches)}, loss {loss:.3f}")
    out = {"steps": float(len(batches)), "loss": loss, "seconds": time.perf_counter() - start, "lr": lr}
    if held_out:
        out |= {f"held_out_{k}": v for k, v in likelihood(engine, pack(held_out)).items()}
    return out


def _epochs(n: int, batch: int, epochs: float, rng: random.Random) -> list[list[int]]:
    """Batches of indices: every demonstration once an epoch, in a new order; the last epoch may be a part.

    No batch reaches into the next epoch, where it could hold a demonstration twice.
    """
    left, out = max(1, int(n * epochs)), []
    while left > 0:
        order = list(range(n))
        rng.shuffle(order)
        order = order[:left]
        left -= len(order)
        out += [order[i : i + batch] for i in range(0, len(order), batch)]
    return out


def _gradient(engine: LocalEngine, batch: TokenBatch) -> float:
    """Accumulate the gradient of the mean over the batch's action tokens; that mean, in nats."""
    total, tokens = 0.0, int(batch.action_mask.sum())
    engine.model.train(engine.config.gradient_checkpointing)
    for index in micro_batches(batch.lengths(), engine.micro_batch_tokens):
        logprobs, _ = engine.logprobs(batch.rows(index).to(engine.device))
        loss = -logprobs.sum() / tokens  # it is 0 off action
        loss.backward()
        total += float(loss.detach())
    engine.model.eval()
    return total


@torch.no_grad()
def likelihood(engine: LocalEngine, batch: TokenBatch) -> dict[str, float]:
    """Of the action tokens: mean negative log-likelihood, and the share that the model finds the likeliest."""
    loss, hits, tokens = 0.0, 0, int(batch.action_mask.sum())
    for index in micro_batches(batch.lengths(), engine.micro_batch_tokens):
        part = batch.rows(index).to(engine.device)
        hidden = engine.hidden(part.input_ids[:, :-1], part.attention_mask[:, :-1])[part.action_mask]
        targets = part.input_ids[:, 1:][part.action_mask]
        for rows in blocks(len(targets), engine.head.module.weight.shape[0], engine.device):
            logits = engine.head.logits(hidden[rows])
            loss += float(torch.nn.functional.cross_entropy(logits, targets[rows], reduction="sum"))
            hits += int((logits.argmax(-1) == targets[rows]).sum())
    return {"loss": loss / tokens, "accuracy": hits / tokens}
