"""How the memory of one card is split between the trainer and vLLM. Pure arithmetic, for the start and `--dry-run`.

The trainer holds its state all the time (weights, gradients, AdamW), activations and logits while it trains. vLLM holds
its weights and a fixed key/value memory while it samples, and all the time where it does not sleep. Sampling and
training take turns, so that with sleep a card needs the larger of the two, without it their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

from agentrl.config import LoraConfig, RunConfig
from agentrl.engines.kind import Shape
from agentrl.engines.shared.estimate import bytes_text, logits_bytes, responses

BLOCK = 16  # tokens of a key/value block
BLOCK_CPU = 128
WORKSPACE = {"cuda": 1.5e9, "cpu": 0.3e9}  # of vLLM: CUDA graphs, sampled logits, its own buffers
SMALLEST_CACHE = 64e6
MARGIN = 0.92  # of what is free may be planned with: allocators fragment


@dataclass(frozen=True)
class Split:
    """Bytes, as planned."""

    state: float  # of the trainer, always there
    work: float  # of the trainer, while it trains
    weights: float  # of vLLM
    cache: float  # of vLLM, fixed
    workspace: float  # of vLLM, also while it sleeps
    sleeps: bool

    @property
    def need(self) -> float:
        """The most that is held at once."""
        served, held = self.weights + self.cache, self.state + self.workspace
        return held + (max(served, self.work) if self.sleeps else served + self.work)


def cache_bytes(config: RunConfig, shape: Shape, device: str) -> float:
    """Key/value memory of vLLM: as configured, else room for every episode that is decoded at once."""
    v = config.rollout.vllm
    if v.kv_cache_gb is not None:
        return v.kv_cache_gb * 1e9
    block = BLOCK if device == "cuda" else BLOCK_CPU
    blocks = -(-config.rollout.max_context // block) + 1
    return max(SMALLEST_CACHE, sequences(config) * blocks * block * token_bytes(config, shape))


def token_bytes(config: RunConfig, shape: Shape) -> float:
    """Of one token's keys and values."""
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * _low(config)


def sequences(config: RunConfig) -> int:
    """Episodes that vLLM decodes at once, at most; those of an evaluation count, too."""
    flying = min(config.rollout.concurrency, responses(config))
    if config.eval.questions:
        flying = max(flying, min(config.eval.batch, config.eval.questions * config.eval.samples))
    return min(config.rollout.vllm.max_sequences, flying)


def split(config: RunConfig, shape: Shape, device: str, available: float) -> Split:
    """The plan for `available` bytes; with sleep where the config says so, or says auto and it does not fit without."""
    m, low = shape, _low(config)
    per_token = m.hidden * (2 if config.model.gradient_checkpointing else 34) * m.layers * low / 2
    tokens = config.train.micro_batch_tokens
    reference = 4.0 * m.parameters if config.algorithm.loss.kl_coef and config.model.lora is None else 0.0
    parts = (
        4.0 * m.parameters + 12.0 * m.trainable + reference,
        tokens * per_token + logits_bytes(tokens, m.vocabulary, device == "cuda"),
        float(low * m.parameters + (low * m.trainable if config.model.lora else 0)),
        cache_bytes(config, shape, device),
        WORKSPACE[device],
    )
    awake = Split(*parts, sleeps=False)
    if device != "cuda" or config.rollout.vllm.sleep == "off":
        return awake
    if config.rollout.vllm.sleep == "on" or awake.need > MARGIN * available:
        return Split(*parts, sleeps=True)
    return awake


def too_little(config: RunConfig, shape: Shape, device: str, available: float) -> str | None:
    """None where it fits; else the numbers and up to three settings that fit by the same arithmetic."""
    plan = split(config, shape, device, available)
    if plan.need <= MARGIN * available:
        return None
    fits = list(settings_that_fit(config, shape, device, available))
    remedy = (
        "set " + ", or ".join(fits)
        if fits
        else "no setting fits: take a smaller model, or engine openrlhf on more GPUs"
    )
    where = "on the card" if device == "cuda" else "in main memory"
    return (
        f"rollout.sampler vllm beside the trainer needs {bytes_text(plan.need)} and {bytes_text(available)} are free "
        f"{where}, of which {MARGIN:.0%} may be planned with: trainer {bytes_text(plan.state)} (weights, gradients, "
        f"AdamW) and {bytes_text(plan.work)} while it trains (train.micro_batch_tokens "
        f"{config.train.micro_batch_tokens}), vLLM {bytes_text(plan.weights)} of weights, {bytes_text(plan.cache)} of "
        f"keys and values ({sequences(config)} episodes x {config.rollout.max_context} tokens) and "
        f"{bytes_text(plan.workspace)} of its own; {remedy}"
    )


Change = tuple[str, RunConfig]


def settings_that_fit(config: RunConfig, shape: Shape, device: str, available: float, count: int = 3) -> Iterator[str]:
    """At most `count` changes of one or two keys, each of which makes the plan fit; single ones first."""
    found = 0
    singles = list(_changes(config))
    for size in (1, 2):
        for chosen in combinations(singles, size):
            if size > 1 and any(_fits(change(config)[1], shape, device, available) for change in chosen):
                continue  # one of them is enough
            text, changed = _applied(config, chosen, shape, device, available)
            if _fits(changed, shape, device, available):
                yield text
                found += 1
                if found == count:
                    return


def _applied(
    config: RunConfig, chosen: tuple[Callable[[RunConfig], Change], ...], shape: Shape, device: str, available: float
) -> Change:
    texts = []
    for change in chosen:
        text, config = change(config)
        texts.append(text)
    return " and ".join(texts), config


def _changes(config: RunConfig) -> Iterator[Callable[[RunConfig], Change]]:
    """What can be made smaller, the cheapest first."""
    if config.rollout.vllm.sleep == "off":
        yield lambda c: ("rollout.vllm.sleep to auto", _with_vllm(c, sleep="auto"))
    for share in (2, 4, 8):
        fewer = max(1, sequences(config) // share)
        if fewer < sequences(config):
            yield lambda c, n=fewer: (  # type: ignore[misc]
                f"rollout.vllm.max_sequences to {n} (further episodes wait)",
                _with_vllm(c, max_sequences=n, kv_cache_gb=None),
            )
    for share in (2, 4, 8):
        tokens = config.train.micro_batch_tokens // share
        if tokens >= config.rollout.max_context:
            yield lambda c, n=tokens: (  # type: ignore[misc]
                f"train.micro_batch_tokens to {n}",
                c.model_copy(update={"train": c.train.model_copy(update={"micro_batch_tokens": n})}),
            )
    if not config.model.gradient_checkpointing:
        yield lambda c: ("model.gradient_checkpointing to true (slower)", _with_model(c, gradient_checkpointing=True))
    if config.model.dtype == "float32":
        yield lambda c: ("model.dtype to bfloat16", _with_model(c, dtype="bfloat16"))
    if config.model.lora is None:
        yield lambda c: ("model.lora to {rank: 16} (trains adapters alone)", _with_model(c, lora=LoraConfig()))


def _with_vllm(config: RunConfig, **changes: object) -> RunConfig:
    vllm = config.rollout.vllm.model_copy(update=changes)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"vllm": vllm})})


def _with_model(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def _fits(config: RunConfig, shape: Shape, device: str, available: float) -> bool:
    if config.model.lora is not None and shape.trainable == shape.parameters:
        shape = Shape(**{**vars(shape), "trainable": shape.parameters // 50})  # about what rank 16 trains
    return split(config, shape, device, available).need <= MARGIN * available


def _low(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4
