"""Does vLLM hold the trainer's weights? Two comparisons after every hand-over, without torch.

`Digest` is Σ|w| in fp64 by parameter group: exact, and it names what is stale. The probe is a text that vLLM samples
and the trainer scores: it also sees what is no parameter, such as a packed copy of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.errors import AgentRLError

Digest = dict[str, float]

DIGEST_TOLERANCE = 1e-6  # relative; the same numbers are added in another order
_PARTS = (
    ("lm_head", "output head"),
    ("embed", "embedding"),
    ("attn", "attention"),
    ("attention", "attention"),
    ("mlp", "mlp"),
    ("experts", "mlp"),
)


class SyncError(AgentRLError):
    """vLLM samples from other weights than the trainer's."""

    exit_code = 3


def parameter_group(name: str) -> str:
    """A name that vLLM's fused layers share with the model's own: `layer 3 attention`, `output head`, `final norm`."""
    words = name.split(".")
    at = next((i for i, w in enumerate(words[:-1]) if w in ("layers", "h", "blocks") and words[i + 1].isdigit()), None)
    layer = "" if at is None else f"layer {words[at + 1]} "
    rest = name if at is None else ".".join(words[at + 2 :])
    kind = next((kind for text, kind in _PARTS if text in rest and "norm" not in rest.split(".")[0]), None)
    if kind is None:
        kind = ("norms" if layer else "final norm") if "norm" in rest or "ln" in rest else rest.rsplit(".", 1)[0]
    return layer + kind


def stale_groups(trainer: Digest, shards: Sequence[Digest]) -> dict[str, tuple[float, float]]:
    """Groups on which vLLM, whose tensor-parallel ranks hold `shards`, differs: the trainer's sum and vLLM's.

    A rank holds a part of a group or a copy of it: the sum over ranks or every rank must be right. An output head that
    only one side lists is tied to the embedding.
    """
    out = {}
    for group, value in trainer.items():
        held = [s[group] for s in shards if group in s]
        if not held:
            if group != "output head":
                out[group] = (value, 0.0)
            continue
        if not _equal(sum(held), value) and not all(_equal(h, value) for h in held):
            out[group] = (value, sum(held))
    return out


def check(
    engine: int,
    policy_version: int,
    vllm_logprobs: Sequence[float],
    trainer_logprobs: Sequence[float],
    tolerance: float,
    stale: dict[str, tuple[float, float]],
) -> float:
    """The largest gap in nats between the two; SyncError where it exceeds `tolerance` or a group is `stale`."""
    gap = max((abs(a - b) for a, b in zip(vllm_logprobs, trainer_logprobs)), default=0.0)
    if gap <= tolerance and not stale:
        return gap
    if stale:
        sums = ", ".join(f"{group} (Σ|w| {own:.7g}, in vLLM {its:.7g})" for group, (own, its) in stale.items())
        what = f"these parameters are not the trainer's: {sums}"
    else:
        what = (
            "all its parameters are the trainer's, so what it computes from them is stale: most likely the output head "
            "(a packed or tied copy), else another layer's packed copy"
        )
    raise SyncError(
        f"vLLM engine {engine} does not sample from the weights of version {policy_version}: its log-probabilities of "
        f"one text differ by up to {gap:.3g} nats (openrlhf.sync_tolerance = {tolerance:g}); {what}. Resume from the "
        "last checkpoint to load everything anew; raise openrlhf.sync_tolerance only if all parameters agree and the "
        "precision explains the gap"
    )


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= DIGEST_TOLERANCE * max(abs(a), abs(b))
