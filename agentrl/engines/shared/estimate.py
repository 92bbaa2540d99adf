"""What estimates of several engines share: how much a step is at most, bytes as text. No torch."""

from __future__ import annotations

from agentrl.config import RunConfig

BLOCK, GPU_BLOCK = 8.4e6, 134e6  # bytes of a block of logits (agentrl.algorithms.head)
BLOCKS = 3  # held at once: logits, their exponentials, the gradient


def responses(config: RunConfig) -> int:
    """Of a step."""
    return config.rollout.prompts_per_step * config.rollout.group_size


def action_tokens(config: RunConfig) -> int:
    """The most that one response can sample."""
    turns = config.environment.kwargs.get("max_turns", config.rollout.max_turns - 1) + 1
    return min(turns * config.rollout.max_tokens_per_turn, config.rollout.max_context)


def logits_bytes(tokens: int, vocabulary: int, gpu: bool) -> float:
    """Of the logits that are held at once, of a micro-batch of so many tokens: never all of them."""
    return BLOCKS * min(GPU_BLOCK if gpu else BLOCK, 4.0 * tokens * vocabulary)


def bytes_text(n: float) -> str:
    """`n` bytes with a unit, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.1f} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1000
    return f"{n:.1f} TB"
