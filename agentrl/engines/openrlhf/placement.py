"""Who goes where, and what a step is cut into. Pure arithmetic, for `--dry-run` and for launch."""

from __future__ import annotations

from agentrl.config import RunConfig
from agentrl.engines.kind import Table

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.29 makes room for


def placement_rows(config: RunConfig) -> Table:
    """GPUs and the processes on them."""
    c = config.openrlhf
    each = c.tensor_parallel
    nodes = f"{c.nodes} node{'s'[: c.nodes > 1]} x {c.gpus_per_node} GPU{'s'[: c.gpus_per_node > 1]}"
    rows = [
        ["placement", ""],
        ["policy workers", f"{c.workers} ({nodes}), ZeRO-{c.zero_stage}"],
        ["vLLM engines", f"{c.engines} x {each} GPU{'s'[: each > 1]}{', tensor parallel' if each > 1 else ''}"],
        ["GPUs in all", f"{c.gpus}{', shared: engines sleep while the policy trains' if c.colocate else ''}"],
    ]
    if keeps_reference(config):
        rows.append(["frozen reference", f"{c.workers} workers on the policy's GPUs"])
    behind = f"asynchronous, at most {c.staleness} version{'s'[: c.staleness > 1]} behind"
    rows.append(["sampling and training", behind if c.asynchronous else "in turns"])
    rows.append(["world size, policy", str(c.workers)])
    return [*rows, ["world size, weights to vLLM", str(1 + c.engines * each)]]


def batch_rows(config: RunConfig) -> Table:
    """What becomes of a step's responses."""
    c, r, t = config.openrlhf, config.rollout, config.train
    responses = r.prompts_per_step * r.group_size
    per_step = -(-responses // t.mini_batches)
    rows = -(-per_step // c.workers)
    fit = max(1, t.micro_batch_tokens // r.max_context)
    flying = min(r.concurrency, responses)
    return [
        ["batch", ""],
        ["responses per step", f"{responses:,} ({r.prompts_per_step} prompts x {r.group_size})"],
        ["optimiser steps per step", f"{t.mini_batches * t.epochs}"],
        ["responses per optimiser step", f"{per_step:,}"],
        ["responses per policy worker", f"{rows:,}, in micro-batches of {t.micro_batch_tokens:,} tokens"],
        ["micro-batches per optimiser step", f"at most {-(-rows // fit)}"],
        ["episodes in flight", f"{flying:,}, {-(-flying // c.engines):,} per engine"],
    ]


def keeps_reference(config: RunConfig) -> bool:
    """Whether frozen workers are needed; with LoRA the base model is the reference."""
    return config.algorithm.loss.kl_coef > 0 and config.model.lora is None


def vllm_rank(rank: int) -> int:
    """The room that vLLM makes for LoRA adapters of this rank; ranks above its largest are refused by `rules`."""
    return next(r for r in LORA_RANKS if r >= rank)
