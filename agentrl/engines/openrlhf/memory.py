"""What a GPU holds, in bytes: the dry run's table, and what to say where it is too much. Pure arithmetic, no torch.

What DeepSpeed 0.19 and vLLM 0.29 hold at the same time is added up, phase by phase; the largest phase counts. Left out:
CUDA's own context (about 0.5 GB a process) and fragmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentrl.config import RunConfig
from agentrl.engines.kind import Shape, Table
from agentrl.engines.openrlhf.placement import keeps_reference, vllm_rank
from agentrl.engines.shared.estimate import logits_bytes

GB = 1e9
REDUCE_BUCKET = 500_000_000  # gradients that DeepSpeed sums at once, by default
LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered, by default
CUDA = 1.0 * GB  # of two processes on a shared GPU, or one with its libraries


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. `policy` and `reference` are there all the time, the rest in its phase."""

    policy: float  # weights in the model's precision, or ZeRO-3's part of them
    reference: float
    optimiser: float  # fp32 weights and AdamW's moments
    gradients: float  # their sums in fp32
    bucket: float  # gradients on their way to other ranks
    gathered: float  # weights that ZeRO-3 fetches
    flat: float  # a copy of the summed gradients while AdamW steps
    activations: float
    logits: float
    served: float  # vLLM's weights and LoRA adapters
    cache: float  # vLLM's key/value cache for all episodes that it plays at once
    shared: bool  # vLLM on the policy's GPU

    @property
    def training(self) -> float:
        """The largest phase of a policy worker's step, vLLM elsewhere or asleep."""
        held = self.policy + self.reference + self.optimiser + self.gathered + self.gradients
        return held + max(self.bucket + self.activations + self.logits, self.flat)

    @property
    def sampling(self) -> float:
        """While vLLM samples; on a shared GPU the policy's weights stay, its optimiser does not."""
        return self.served + self.cache + (self.policy + self.reference if self.shared else 0.0)

    @property
    def most(self) -> float:
        """What a GPU must have, of the kind that needs more."""
        return max(self.training, self.sampling)


def memory(config: RunConfig, shape: Shape) -> Memory:
    """Of a model of this shape, per GPU."""
    c, low = config.openrlhf, 2 if config.model.dtype == "bfloat16" else 4
    world, three = c.workers, c.zero_stage == 3
    tokens = config.train.micro_batch_tokens
    kept = 2 if config.model.gradient_checkpointing else 34
    weights = low * shape.parameters / (world if three else 1)
    cached = 2.0 * shape.layers * shape.kv_heads * shape.head_dim * low * config.rollout.max_context
    adapters = 0.0
    if config.model.lora is not None:
        adapters = low * shape.trainable * vllm_rank(config.model.lora.rank) / config.model.lora.rank
    return Memory(
        policy=weights,
        reference=weights if keeps_reference(config) else 0.0,
        optimiser=0.0 if c.adam_offload else 12.0 * shape.trainable / world,
        gradients=(0.0 if c.adam_offload else 4.0 * shape.trainable / world) + low * shape.trainable / world,
        bucket=float(low * min(REDUCE_BUCKET, shape.parameters)),
        gathered=float(low * min(LIVE, shape.parameters)) if three else 0.0,
        flat=0.0 if c.adam_offload else 4.0 * shape.trainable / world,
        activations=tokens * shape.hidden * kept * shape.layers * low / 2,
        logits=logits_bytes(tokens, shape.vocabulary, gpu=True),
        served=(low * shape.parameters + adapters) / c.tensor_parallel,
        cache=cached * min(c.max_sequences, -(-config.rollout.concurrency // c.engines)) / c.tensor_parallel,
        shared=c.colocate,
    )


def memory_rows(config: RunConfig, shape: Shape) -> Table:
    """GB per GPU, about."""
    m = memory(config, shape)
    training = {
        "weights": m.policy,
        "fp32 weights and AdamW": m.optimiser,
        "gradients, summed in fp32": m.gradients,
        "gradients on their way": m.bucket,
        "weights that ZeRO-3 gathers": m.gathered,
        "frozen reference": m.reference,
        "activations of a micro-batch": m.activations,
        "logits at once": m.logits,
    }
    rows = [["memory per GPU, about", ""], ["parameters", f"{shape.parameters:,} ({shape.trainable:,} trained)"]]
    rows += [[name, f"{size / GB:.1f} GB"] for name, size in training.items() if size]
    rows.append(["policy worker in all", f"{m.training / GB:.1f} GB"])
    rows.append(["vLLM: weights", f"{m.served / GB:.1f} GB"])
    rows.append(["vLLM: key/value cache for all episodes", f"{m.cache / GB:.1f} GB (it takes what gpu_memory leaves)"])
    if m.shared:
        rows.append(["shared GPU while vLLM samples", f"{m.sampling / GB:.1f} GB, the policy's weights included"])
        rows.append(["shared GPU, at most", f"{m.most / GB:.1f} GB"])
    return rows


# --------------------------------------------------------------------------------------------------- too little of it


def too_large(config: RunConfig, shape: Shape, gpu: float) -> list[str]:
    """One line where a GPU of `gpu` bytes does not hold it: the numbers, and settings that would fit; else nothing."""
    if _fits(config, shape, gpu):
        return []
    m, c = memory(config, shape), config.openrlhf
    share = c.gpu_memory * gpu
    numbers = f"a policy worker needs {m.training / GB:.1f} GB"
    if c.colocate:
        numbers += f", and vLLM beside its weights {m.sampling / GB:.1f} GB on the same GPU"
    numbers += (
        f"; vLLM needs {(m.served + _least_cache(config, m)) / GB:.1f} GB of the {share / GB:.1f} GB that "
        f"openrlhf.gpu_memory = {c.gpu_memory:g} leaves it"
    )
    found = list(_settings_that_fit(config, shape, gpu))
    remedy = (
        "; or ".join(found) if found else "no single setting is enough: take more or larger GPUs, or a smaller model"
    )
    return [f"{gpu / GB:.0f} GB a GPU are too little for {config.model.path}: {numbers}. What would fit: {remedy}"]


def _least_cache(config: RunConfig, m: Memory) -> float:
    """Bytes for one episode, without which vLLM does not start."""
    c = config.openrlhf
    return m.cache / min(c.max_sequences, -(-config.rollout.concurrency // c.engines))


def _fits(config: RunConfig, shape: Shape, gpu: float) -> bool:
    m, c = memory(config, shape), config.openrlhf
    least = m.served + _least_cache(config, m)
    beside = m.policy + m.reference if c.colocate else 0.0
    return m.training + CUDA <= gpu and least <= c.gpu_memory * gpu and beside + c.gpu_memory * gpu + CUDA <= gpu


def _settings_that_fit(config: RunConfig, shape: Shape, gpu: float, most: int = 3) -> Iterator[str]:
    """At most `most` changes of one or two keys after which it fits, the cheapest first."""
    c, t = config.openrlhf, config.train
    lora = config.model.lora is not None
    share = _share(config, shape, gpu)
    single: list[dict[str, Any]] = [
        {"model.gradient_checkpointing": True},
        *({"train.micro_batch_tokens": max(config.rollout.max_context, t.micro_batch_tokens // n)} for n in (2, 4, 16)),
        {"openrlhf.gpu_memory": share},
        *([] if lora else [{"openrlhf.zero_stage": 3}]),
        *([] if lora or c.colocate else [{"openrlhf.zero_stage": 3, "openrlhf.adam_offload": True}]),
        *_more_gpus(config),
        *([{"openrlhf.colocate": False}] if c.colocate else []),
    ]
    pairs = [a | b for i, a in enumerate(single) for b in single[i + 1 :]]
    triples = [{**single[0], **p} for p in pairs]
    given = 0
    seen: list[dict[str, Any]] = []
    for change in [*single, *pairs, *triples]:
        change = {k: v for k, v in change.items() if value_of(config, k) != v}
        if not change or any(all(change.get(k) == v for k, v in s.items()) for s in seen):
            continue  # nothing, or more than is needed
        try:
            if not _fits(changed(config, change), shape, gpu):
                continue
        except ValueError:  # of two keys that exclude each other
            continue
        seen.append(change)
        yield " with ".join(f"{key} {_text(value)}" for key, value in change.items())
        given += 1
        if given == most:
            return


def _more_gpus(config: RunConfig) -> list[dict[str, Any]]:
    c = config.openrlhf
    out = []
    for times in (2, 4, 8):
        change: dict[str, Any] = {"openrlhf.gpus_per_node": times * c.gpus_per_node}
        if c.colocate:
            change["openrlhf.engines"] = times * c.engines
        three = {} if config.model.lora is not None else {"openrlhf.zero_stage": 3}
        out.append(change | three)
        if c.colocate:
            apart = {"openrlhf.colocate": False, "openrlhf.gpus_per_node": times * c.gpus_per_node}
            out.append(apart | three)
    return out


def _share(config: RunConfig, shape: Shape, gpu: float) -> float:
    """The largest share of a GPU for vLLM, in hundredths, that leaves the policy's weights beside it."""
    m = memory(config, shape)
    beside = m.policy + m.reference if config.openrlhf.colocate else 0.0
    return max(0.01, min(0.9, int(100 * (gpu - beside - CUDA) / gpu) / 100))


def value_of(config: RunConfig, key: str) -> Any:
    """Of a key with dots."""
    part: Any = config
    for word in key.split("."):
        part = getattr(part, word)
    return part


def changed(config: RunConfig, change: dict[str, Any]) -> RunConfig:
    """The config with some keys set, checked anew. ValueError where they do not go together."""
    tree = config.model_dump()
    for key, value in change.items():
        part = tree
        *path, last = key.split(".")
        for word in path:
            part = part[word]
        part[last] = value
    return RunConfig.model_validate(tree)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else str(value)
