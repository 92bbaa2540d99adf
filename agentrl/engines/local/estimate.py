"""What a step of the local engine needs, for `--dry-run`. Pure arithmetic.

Upper bounds for tokens (every response as long as allowed). Left out: attention over long contexts, tools.
"""

from __future__ import annotations

from agentrl.config import RunConfig
from agentrl.engines.kind import Shape, Table
from agentrl.engines.shared.estimate import action_tokens, bytes_text, logits_bytes, responses
from agentrl.engines.vllm import preflight
from agentrl.engines.vllm.memory import split

LIBRARIES = 570e6  # of a process on a CPU: Python, torch 2.13, transformers 5.15 and a tokenizer, measured


def memory_bytes(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Bytes of a process by what they are for, about: on a CPU of all of it, on a GPU of what lies there.

    With vLLM as the sampler its part, too.
    """
    m, low = shape, 2 if config.model.dtype == "bfloat16" else 4
    cache = min(config.rollout.concurrency, responses(config)) * config.rollout.max_context
    cache *= 2 * m.layers * m.kv_heads * m.head_dim * low
    per_token = m.hidden * (2 if config.model.gradient_checkpointing else 34) * m.layers * low / 2
    activations = config.train.micro_batch_tokens * per_token
    reference = 4 * m.parameters if config.algorithm.loss.kl_coef and config.model.lora is None else 0
    gpu = preflight.on_cuda(config)
    return {
        "Python and libraries": 0.0 if gpu else LIBRARIES,
        "weights (fp32)": 4 * m.parameters,
        "gradients and AdamW (fp32)": 12 * m.trainable,
        "frozen reference": reference,
        **(_of_vllm(config, shape) or {"key/value cache": cache}),
        "activations of a micro-batch": activations,
        "logits at once": logits_bytes(config.train.micro_batch_tokens, m.vocabulary, gpu),
    }


def memory_rows(config: RunConfig, shape: Shape) -> Table:
    """The same as text, with the sum."""
    parts, m = memory_bytes(config, shape), shape
    rows = [["memory, about", ""], ["parameters", f"{m.parameters:,} ({m.trainable:,} trained)"]]
    rows += [[name, bytes_text(size)] for name, size in parts.items() if size]
    return [*rows, ["in all", bytes_text(sum(parts.values()))]]


def _of_vllm(config: RunConfig, shape: Shape) -> dict[str, float]:
    """What vLLM holds where it samples, awake; {} where it does not."""
    if preflight.chosen(config)[0] != "vllm":
        return {}
    device = "cuda" if preflight.on_cuda(config) else "cpu"
    plan = split(config, shape, device, float("inf"))
    return {
        f"vLLM: weights ({config.model.dtype})": plan.weights,
        "vLLM: keys and values": plan.cache,
        "vLLM: of its own": plan.workspace,
    }


def step_operations(config: RunConfig, shape: Shape) -> float:
    """Floating-point operations of one step, at most: sampling, scoring, and three times as many for an update.

    With one update a batch there is no scoring pass (docs/algorithms.md).
    """
    n = responses(config)
    body = shape.parameters - shape.vocabulary * shape.hidden  # embeddings are looked up, not multiplied
    head = shape.vocabulary * shape.hidden * n * action_tokens(config)
    forward = 2 * (body * n * config.rollout.max_context + head)
    return float(forward * (1 + _scores_apart(config) + 3 * config.train.epochs))


def _scores_apart(config: RunConfig) -> bool:
    """Whether log π_old has a pass of its own."""
    a, train = config.algorithm, config.train
    if train.mini_batches * train.epochs > 1 or a.token_weights or a.mask_truncated:
        return True
    return a.nthr.enabled and config.rollout.group_size * config.rollout.max_context > train.micro_batch_tokens
