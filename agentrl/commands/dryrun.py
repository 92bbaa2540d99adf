"""`--dry-run`: the resolved config with each value's origin, and what a step will cost. Loads no weights.

The estimates are upper bounds for tokens (every response as long as allowed) and rough for time: operations divided by
the rate of a matrix product measured on this machine. Left out: attention over long contexts, communication, tools.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from agentrl.config import ModelConfig, RunConfig
from agentrl.config.files import DEFAULT, LoadedConfig, value_at
from agentrl.console import duration, table
from agentrl.engines.openrlhf.placement import batch_rows, memory_rows, placement_rows
from agentrl.errors import MissingPackageError, ModelError, need


@dataclass(frozen=True)
class Shape:
    """What the estimates need to know of a model."""

    parameters: int
    trainable: int
    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    positions: int


def report(loaded: LoadedConfig) -> str:
    """The whole text that `agentrl train CONFIG --dry-run` prints."""
    config = loaded.config
    rows = [["key", "value", "from"]]
    rows += [[key, _short(value_at(config, key)), origin] for key, origin in loaded.origins.items()]
    rows.sort(key=lambda r: (r[2] == DEFAULT) if r[0] != "key" else -1)
    lines = [table(rows), "", table(_tokens(config))]
    if config.engine == "openrlhf":
        lines += ["", table(placement_rows(config)), "", table(batch_rows(config))]
    try:
        shape = model_shape(config)
    except (ModelError, MissingPackageError) as error:
        lines += ["", f"memory and time are not estimated: {error}"]
        return "\n".join(lines)
    if config.engine == "openrlhf":
        lines += ["", table(memory_rows(config, shape))]
    else:
        lines += ["", table(_memory(config, shape)), "", table(_time(config, shape))]
    if shape.positions < config.rollout.max_context:
        lines += [
            "",
            f"rollout.max_context = {config.rollout.max_context} is more than the model's {shape.positions} positions",
        ]
    return "\n".join(lines)


def model_shape(run: RunConfig) -> Shape:
    """Read from the model's own config; a hub id that is not cached is fetched (the config file alone)."""
    need("an estimate", "torch", "transformers")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = run.model
    if config.path == "builtin:tiny":
        from agentrl.engines.shared.tiny import tiny_model_config
        from agentrl.train.build import build_world

        model_config: Any = tiny_model_config(config.tiny, build_world(run).tokenizer())
    else:
        try:
            model_config = AutoConfig.from_pretrained(
                config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        except Exception as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ModelError(f"the config of model.path = {config.path!r} cannot be read ({reason})") from e
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    parameters = sum(p.numel() for p in model.parameters())
    trainable = parameters
    if config.lora is not None:
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        trainable = sum(config.lora.rank * (m.in_features + m.out_features) for m in linear)
    c = model_config.get_text_config()
    return Shape(
        parameters,
        trainable,
        c.num_hidden_layers,
        getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        c.hidden_size,
        c.vocab_size,
        int(getattr(c, "max_position_embeddings", 0) or 1_000_000),
    )


def _responses(config: RunConfig) -> int:
    return config.rollout.prompts_per_step * config.rollout.group_size


def _action_tokens(config: RunConfig) -> int:
    """The most that one response can sample."""
    turns = config.env.kwargs.get("max_turns", config.rollout.max_turns - 1) + 1
    return min(turns * config.rollout.max_tokens_per_turn, config.rollout.max_context)


def _tokens(config: RunConfig) -> list[list[str]]:
    n, r = _responses(config), config.rollout
    return [
        ["tokens per step, at most", ""],
        ["responses", f"{n:,} ({r.prompts_per_step} prompts x {r.group_size})"],
        ["sampled tokens", f"{n * _action_tokens(config):,}"],
        ["tokens in context", f"{n * r.max_context:,}"],
        ["optimiser steps", f"{config.train.mini_batches * config.train.epochs}"],
        ["responses per optimiser step", f"{-(-n // config.train.mini_batches)}"],
        ["sampled tokens in the run", f"{n * _action_tokens(config) * config.train.steps:,}"],
    ]


def _memory(config: RunConfig, m: Shape) -> list[list[str]]:
    low = 2 if config.model.dtype == "bfloat16" else 4
    cache = min(config.rollout.concurrency, _responses(config)) * config.rollout.max_context
    cache *= 2 * m.layers * m.kv_heads * m.head_dim * low
    per_token = m.hidden * (2 if config.model.gradient_checkpointing else 34) * m.layers * low / 2
    activations = config.train.micro_batch_tokens * per_token
    reference = 4 * m.parameters if config.algorithm.loss.kl_coef and config.model.lora is None else 0
    parts = {
        "weights (fp32)": 4 * m.parameters,
        "gradients and AdamW (fp32)": 12 * m.trainable,
        "frozen reference": reference,
        "key/value cache": cache,
        "activations of a micro-batch": activations,
        "logits at once": min(256e6, 4.0 * config.train.micro_batch_tokens * m.vocabulary),
    }
    rows = [["memory, about", ""], ["parameters", f"{m.parameters:,} ({m.trainable:,} trained)"]]
    rows += [[name, _bytes(size)] for name, size in parts.items() if size]
    return [*rows, ["in all", _bytes(sum(parts.values()))]]


def _time(config: RunConfig, m: Shape) -> list[list[str]]:
    rate, device = _matmul_rate(config.model)
    n = _responses(config)
    body = m.parameters - m.vocabulary * m.hidden  # embeddings are looked up, not multiplied
    forward = 2 * (body * n * config.rollout.max_context + m.vocabulary * m.hidden * n * _action_tokens(config))
    step = forward * (1 + 1 + 3 * config.train.epochs)  # sampling, scoring, updating
    seconds = step / rate
    return [
        ["time, rough and at most", ""],
        ["measured matrix product", f"{rate / 1e9:,.0f} GFLOP/s on {device}"],
        ["operations per step", f"{step / 1e9:,.1f} GFLOP"],
        ["time per step", f"{seconds:.2f} s" if seconds < 10 else duration(seconds)],
        ["time for the run", duration(seconds * config.train.steps)],
    ]


def _matmul_rate(config: ModelConfig) -> tuple[float, str]:
    """FLOP/s of a (1024, 1024) product, from a tenth of a second of trying."""
    import torch

    from agentrl.engines.shared.loading import pick_device

    device = pick_device(config.device)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + 0.15
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best, str(device)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.1f} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1000
    return f"{n:.1f} TB"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
