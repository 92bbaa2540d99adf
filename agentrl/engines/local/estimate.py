"""What a step of the local engine needs, for `--dry-run`. Pure arithmetic.

Upper bounds for tokens (every response as long as allowed). Left out: attention over long contexts, tools.
"""

from __future__ import annotations

from agentrl.config import RunConfig
from agentrl.engines.kind import Shape, Table
from agentrl.engines.shared.estimate import action_tokens, bytes_text, logits_bytes, responses
from agentrl.engines.vllm import preflight
from agentrl.engines.vllm.memory import split

CACHE, TRAINING = "key/value cache", ("activations of a micro-batch", "logits at once")  # what is held in turns
LIBRARIES = 570e6  # of a process on a CPU: Python, torch 2.13, transformers 5.15 and a tokenizer, measured


def memory_bytes(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Bytes of a process by what they are for, about: on a CPU of all of it, on a GPU of what lies there.

    With vLLM as the sampler its part, too.
    """
    m, low = shape, 2 if config.model.dtype == "bfloat16" else 4
    rows = max(min(config.rollout.concurrency, responses(config)), _evaluated_at_once(config))
    cache = rows * config.rollout.max_context
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
        **(_of_vllm(config, shape) or {CACHE: cache}),
        TRAINING[0]: activations,
        TRAINING[1]: logits_bytes(config.train.micro_batch_tokens, m.vocabulary, gpu),
    }


def memory_rows(config: RunConfig, shape: Shape) -> Table:
    """The same as text, with the sum."""
    parts, m = memory_bytes(config, shape), shape
    rows = [["memory, about", ""], ["parameters", f"{m.parameters:,} ({m.trainable:,} trained)"]]
    rows += [[name, bytes_text(size)] for name, size in parts.items() if size]
    return [*rows, ["at once", bytes_text(at_once(parts))]]


def at_once(parts: dict[str, float]) -> float:
    """Bytes that are held at the same time: the built-in sampler gives its cache back before the model trains."""
    training = sum(parts[name] for name in TRAINING)
    return sum(parts.values()) - min(training, parts.get(CACHE, 0.0))


def _evaluated_at_once(config: RunConfig) -> int:
    return min(config.eval.batch, config.eval.questions * config.eval.samples)


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
