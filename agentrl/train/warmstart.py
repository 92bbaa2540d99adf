"""Supervised warm start: of the built-in model by look-up practice and imperfect demonstrations, of others by
demonstrations that a file holds or a world writes (`agentrl.train.demonstrations`, `agentrl.train.imitation`).

Left out on purpose: checkpoints and resume within it. What it leaves is the run's step-0 model.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from agentrl.config import WarmStartConfig
from agentrl.data.demonstrations import Demonstration, read_demonstrations
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.shared.loading import BUILTIN
from agentrl.train.build import Job
from agentrl.train.demonstrations import played
from agentrl.train.imitation import imitate, split
from agentrl.types import Task, Trajectory

Tokens = tuple[list[int], list[float]]  # ids, and the loss weight of each as a target
REPORT_EVERY = 25
TINY_LR = 2e-3


def warmed_up(job: Job, say: Callable[[str], None] = print) -> dict[str, float]:
    """Warm up the job's model as its config says; what was measured. DataError for demonstrations that are wrong."""
    config = job.config.warm_start
    assert config is not None
    with _threads(config.threads):
        if config.file is None and job.config.model.path == BUILTIN:
            return warm_start(job.local, job.world, config, job.config.seed, say)
        return _imitation(job, config, say)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's CPU threads within; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _imitation(job: Job, config: WarmStartConfig, say: Callable[[str], None]) -> dict[str, float]:
    """Of any model, by demonstrations that are played in the environment."""
    start = time.perf_counter()
    rng = random.Random(job.config.seed)
    demos = demonstrations(job, rng)
    before = {d.task.id: d for d in demos}
    learned, held_out = split(played(demos, job.make_env, job.chat, say), config.held_out, rng)
    out = {f"demonstration_{k}": v for k, v in imitate(job.local, learned, held_out, config, rng, say).items()}
    job.local.sync(bump=False)
    out |= _format([before[t.sample_id].task for t in held_out], job)
    return out | {"demonstrations": float(len(learned)), "seconds": time.perf_counter() - start}


def demonstrations(job: Job, rng: random.Random) -> list[Demonstration]:
    """Those of the file, or `demonstrations` of the world's, of training questions drawn without repetition."""
    config = job.config.warm_start
    assert config is not None
    if config.file is not None:
        return read_demonstrations(config.file)
    questions = job.world.questions("train")
    some = rng.sample(questions, min(config.demonstrations, len(questions)))
    return [_of_world(q, job.world.demonstration(q, rng)) for q in some]


def _of_world(question: dict[str, Any], segments: list[tuple[str, bool]]) -> Demonstration:
    """Its actions; the environment answers them. "<eos>" is the word with which a world's own tokenizer ends."""
    actions = tuple(text.removesuffix("<eos>").rstrip() for text, is_action in segments if is_action)
    id = str(question["id"])
    return Demonstration(f"the world's demonstration of {id}", Task(id, dict(question)), actions)


def _format(tasks: list[Task], job: Job) -> dict[str, float]:
    """What the model does now with held-out demonstrations' questions, sampled as in training.

    `format_rate` is the share of its turns that the environment finds valid, where it says so.
    """
    if not tasks:
        return {}
    with job.pool() as pool:
        done: list[Trajectory] = job.player(pool, seed=job.config.seed).collect(tasks, 1, prefix="format/")
    good = [t for t in done if t.error is None]
    valid = [bool(u.info["valid"]) for t in good for u in t.turns if "valid" in u.info]
    out = {"held_out_correct": sum(t.correct for t in good) / len(good)} if good else {}
    return out | ({"format_rate": sum(valid) / len(valid)} if valid else {})


def warm_start(
    engine: LocalEngine, world: Any, config: WarmStartConfig, seed: int, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the built-in model on the world's practice and demonstrations; returns what was measured.

    Practice runs over throw-away facts and stops early at `lookup_stop_accuracy`; demonstrations are of training
    questions alone.
    """
    start = time.perf_counter()
    rng = random.Random(seed)
    out = {"parameters": float(sum(p.numel() for p in engine.model.parameters()))}
    if config.lookup_steps:
        practice = (
            [_tokens(world.practice(rng), world, 0.0) for _ in range(config.lookup_batch)]
            for _ in range(config.lookup_steps)
        )
        lookup = _fit(engine, practice, config.lookup_steps, config.lookup_lr, config.lookup_decay, "look-up practice",
                      say, stop_accuracy=config.lookup_stop_accuracy)  # fmt: skip
        out |= {f"lookup_{k}": v for k, v in lookup.items()}
    draw = _demonstrator(world, rng)
    demos = [_tokens(draw(), world, config.context_weight) for _ in range(config.demonstrations)]
    steps = max(1, int(len(demos) * config.epochs / config.batch))
    lr = config.lr or TINY_LR
    fitted = _fit(engine, _epochs(demos, config.batch, config.bucket, rng), steps, lr, 0.9, "demonstrations", say)
    out |= {f"demonstration_{k}": v for k, v in fitted.items()}
    engine.sync(bump=False)
    return out | {"seconds": time.perf_counter() - start}


def _demonstrator(world: Any, rng: random.Random) -> Callable[[], list[tuple[str, bool]]]:
    """Draws demonstrations of training questions; several worlds take turns by chance, not by their size."""
    if hasattr(world, "example"):
        of_each = [one.questions("train") for one in world.worlds]
        return lambda: list(world.example(rng, of_each))
    questions = world.questions("train")
    return lambda: list(world.demonstration(rng.choice(questions), rng))


def _tokens(segments: list[tuple[str, bool]], world: Any, context_weight: float) -> Tokens:
    ids: list[int] = []
    weights: list[float] = []
    for text, is_action in segments:
        new = world.encode(text)
        ids += new
        weights += [1.0 if is_action else context_weight] * len(new)
    return ids, weights


def _epochs(demos: list[Tokens], batch: int, bucket: int, rng: random.Random) -> Iterator[list[Tokens]]:
    """Endless batches of similar lengths: shuffled, sorted within windows of `bucket`, the batches shuffled again."""
    size = max(bucket, batch)
    while True:
        order = list(range(len(demos)))
        rng.shuffle(order)
        batches = []
        for a in range(0, len(order), size):
            window = sorted(order[a : a + size], key=lambda i: len(demos[i][0]))
            batches += [window[b : b + batch] for b in range(0, len(window), batch)]
        rng.shuffle(batches)
        for index in batches:
            yield [demos[i] for i in index]


def _fit(
    engine: LocalEngine,
    batches: Iterator[list[Tokens]],
    steps: int,
    lr: float,
    decay: float,
    name: str,
    say: Callable[[str], None],
    stop_accuracy: float = 2.0,
) -> dict[str, float]:
    """AdamW with 50 steps of warm-up and a linear decay by `decay`; the loss is the weighted mean over targets."""
    parameters = list(engine.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    start = time.perf_counter()
    loss_value = accuracy = float("nan")
    done = 0
    for done, batch in zip(range(1, steps + 1), batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, done / 50) * (1 - decay * (done - 1) / steps)
        ids, weights = _pad(batch)
        target, weight = ids[:, 1:], weights[:, 1:]
        chosen = weight > 0
        logits = engine.head.logits(engine.hidden(ids[:, :-1], torch.ones_like(ids[:, :-1]))[chosen])
        token_loss = torch.nn.functional.cross_entropy(logits, target[chosen], reduction="none")
        loss = (token_loss * weight[chosen]).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if done % REPORT_EVERY == 0 or done == steps:
            full = weight[chosen] == 1.0
            accuracy = float((logits.detach()[full].argmax(-1) == target[chosen][full]).float().mean())
            loss_value = float(loss.detach())
            say(f"{name}: step {done}/{steps}, loss {loss_value:.3f}, token accuracy {accuracy:.2f}")
            if accuracy >= stop_accuracy:
                break
    return {"steps": float(done), "loss": loss_value, "accuracy": accuracy, "seconds": time.perf_counter() - start}


def _pad(batch: list[Tokens]) -> tuple[Tensor, Tensor]:
    T = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([i + [0] * (T - len(i)) for i, _ in batch])
    weights = torch.tensor([w + [0.0] * (T - len(w)) for _, w in batch])
    return ids, weights
