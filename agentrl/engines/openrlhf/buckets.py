"""Weights on their way to vLLM: many tensors in one flat one, and what of them another rank holds too. Torch alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from agentrl.engines.openrlhf.sync import OWN, Digest, parameter_group

BUCKET_BYTES = 256 * 1024 * 1024  # sent at once; one tensor that is larger goes alone
ALL = "all"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Named = tuple[str, Tensor]


def buckets(weights: Iterable[Named], limit: int = BUCKET_BYTES) -> Iterator[list[Named]]:
    """Neighbours of one dtype together, as many as fit into `limit` bytes; all in order, none left out."""
    held: list[Named] = []
    size = 0
    for name, weight in weights:
        more = numel(weight) * weight.element_size()
        if held and (size + more > limit or held[0][1].dtype != weight.dtype):
            yield held
            held, size = [], 0
        held.append((name, weight))
        size += more
    if held:
        yield held


def numel(weight: Any) -> int:
    """Of the whole tensor, also where ZeRO-3 keeps a part of it."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def shape(weight: Any) -> tuple[int, ...]:
    """Of the whole tensor, also where ZeRO-3 keeps a part of it."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def flat(bucket: Sequence[Named]) -> Tensor:
    """The tensors of a bucket end to end: (sum of numel,)."""
    return torch.cat([weight.detach().reshape(-1) for _, weight in bucket])


def views(whole: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of `flat`, without a copy."""
    sizes = [math.prod(s) for s in shapes]
    return [part.view(*s) for part, s in zip(whole.split(sizes), shapes, strict=True)]


def bits(weight: Tensor) -> int:
    """The sum of a tensor's bits, read as integers: exact, in whatever order it is added up."""
    return int(weight.detach().contiguous().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64))


def add_bits(digest: Digest, bucket: Sequence[Named], prefix: str = "") -> None:
    """Add the bits of a bucket to the digest of its parameter groups."""
    for name, weight in bucket:
        group = prefix + parameter_group(name)
        digest[group] = digest.get(group, 0) + bits(weight)


def held_parts(module: Any, name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Parts of a vLLM layer's parameter with who else holds the same: `OWN` nobody, `ALL` every rank, or some ranks.

    By the class names of vLLM's layers (0.29): a replicated linear layer (routers), the bias of a row-parallel one, and
    whatever knows no tensor parallelism (norms, also those of queries and keys) are on every rank; with more ranks than
    key/value heads several ranks share a head.
    """
    kinds = {c.__name__ for c in type(module).__mro__}
    ranks = getattr(module, "tp_size", 1)
    everywhere = ranks == 1 or "ReplicatedLinear" in kinds or ("RowParallelLinear" in kinds and name == "bias")
    if everywhere:
        yield ALL, weight
        return
    sharing = getattr(module, "num_kv_head_replicas", 1)
    if "QKVParallelLinear" not in kinds or sharing == 1:
        yield OWN, weight
        return
    queries = module.num_heads * module.head_size
    yield OWN, weight[:queries]
    yield f"key/value head {module.tp_rank // sharing}", weight[queries:]
