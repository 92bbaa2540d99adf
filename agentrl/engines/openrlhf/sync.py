"""Does vLLM hold the trainer's weights? Two comparisons after every hand-over, without torch.

The digest is the sum of the bits of all weights, read as integers, by parameter group: exact whatever the order of
addition, and it names what is stale. It is the gate.

The probe is some texts that vLLM samples and the trainer scores: it also sees what is no parameter, such as a packed
copy of the output head. In bfloat16 two correct implementations differ, by an amount that depends on the model: what is
too much is measured, as a multiple of the mean gap of the first hand-over, where both sides hold one and the same file.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.engines.shared.probe import Limit
from agentrl.errors import AgentRLError

Digest = dict[str, int]  # parameter group -> sum of bits
#: What one rank of vLLM holds: parameter group -> who else holds the same (`OWN`: nobody) -> sum of bits
Shard = dict[str, dict[str, int]]
OWN = ""
ADAPTER_ID = 1  # of the one LoRA adapter that a vLLM engine has
ADAPTER = "adapter of "  # before the parameter group that a LoRA adapter belongs to

PROBE_TEXTS = 4  # of one probe, each with a seed of its own
PROBE_TOKENS = 64  # of one text

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


def whole(shards: Sequence[Shard]) -> Digest:
    """The digest of one vLLM engine from those of its tensor-parallel ranks: what several hold is counted once.

    Copies that differ are all counted, so that the sum is not the trainer's.
    """
    out: Digest = {}
    for group in dict.fromkeys(g for shard in shards for g in shard):
        held: dict[str, list[int]] = {}
        for shard in shards:
            for who, value in shard.get(group, {}).items():
                held.setdefault(who, []).append(value)
        own = sum(held.pop(OWN, []))
        out[group] = own + sum(v[0] if len(set(v)) == 1 else sum(v) for v in held.values())
    return out


def stale_groups(trainer: Digest, shards: Sequence[Shard]) -> list[str]:
    """Groups that vLLM, whose tensor-parallel ranks hold `shards`, does not hold as the trainer does.

    An output head that only one side lists is tied to the embedding.
    """
    theirs = whole(shards)
    return [
        group
        for group, value in trainer.items()
        if theirs.get(group) != value and (group in theirs or group != "output head")
    ]


def mean_gap(vllm: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]]) -> float:
    """Mean distance in nats between two lists of texts' log-probabilities; 0 where there are none."""
    gaps = [abs(a - b) for one, other in zip(vllm, trainer, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(gaps) / len(gaps) if gaps else 0.0


def stale_error(engine: int, version: int, groups: Sequence[str]) -> SyncError:
    """What is said where the digest differs."""
    return SyncError(
        f"vLLM engine {engine} does not sample from the weights of version {version}: these parameters are not the "
        f"trainer's: {', '.join(groups)}. Resume from the last checkpoint to load everything anew"
    )


def gap_error(engine: int, version: int, gap: float, limit: Limit) -> SyncError:
    """What is said where the digest agrees and two probes do not."""
    if limit.fixed is not None:
        why = f"openrlhf.sync_tolerance = {limit.fixed:g}"
    elif limit.baseline is None:
        why = f"at most {limit.nats:g} where both sides have just loaded one file"
    else:
        why = f"{limit.baseline:.2g} at the first hand-over, at most {limit.nats:.2g}"
    return SyncError(
        f"vLLM engine {engine} does not sample from the weights of version {version}: its log-probabilities differ by "
        f"{gap:.3g} nats on average over {PROBE_TEXTS} texts, twice with other seeds ({why}); all its parameters are "
        "the trainer's, so what it computes from them is stale: most likely the output head (a packed or tied copy), "
        "else another layer's packed copy. Resume from the last checkpoint to load everything anew; set "
        f"openrlhf.sync_tolerance to {2 * gap:.2g} only if the precision explains the gap"
    )
