"""The rows of a batch to workers, and their results back. Pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from agentrl.batch import TokenBatch
from agentrl.engines.base import ScoreResult
from agentrl.engines.shared.updates import Update

#: fields of ScoreResult with a value per token, and what is in columns that a worker's shorter rows lack
_PER_TOKEN = {"logprobs": 0.0, "entropy": 0.0, "nthr_scores": 0.0, "nthr_selected": False, "nthr_factor": 1.0}


def balance(lengths: Tensor, parts: int) -> list[Tensor]:
    """Rows to `parts` workers with about as many tokens each: the longest first, to whom has least."""
    total = [0] * parts
    shares: list[list[int]] = [[] for _ in range(parts)]
    for i in torch.argsort(lengths, descending=True, stable=True).tolist():
        to = total.index(min(total))
        shares[to].append(i)
        total[to] += int(lengths[i])
    return [torch.tensor(sorted(s), dtype=torch.int64) for s in shares]


def share_groups(batch: TokenBatch, parts: int) -> list[Tensor]:
    """Rows to `parts` workers, whole groups."""
    ids, slot = torch.unique(batch.group_ids, return_inverse=True)
    tokens = torch.zeros(len(ids), dtype=torch.int64).index_add_(0, slot, batch.lengths())
    return [torch.isin(slot, groups).nonzero()[:, 0] for groups in balance(tokens, parts)]


def cut(update: Update, index: Tensor) -> Update | None:
    """The rows `index` of a mini-batch for one worker, with the divisor of all; None where it gets none."""
    return update.rows(index) if len(index) else None


def merge(batch: TokenBatch, parts: list[Tensor], results: list[ScoreResult | None]) -> ScoreResult:
    """Results of the workers' rows as one of the whole batch."""
    shape = batch.action_mask.shape
    out = ScoreResult(torch.zeros(shape))
    pairs = [(i, r) for i, r in zip(parts, results) if r is not None]
    first = pairs[0][1]
    for name, empty in _PER_TOKEN.items():
        if getattr(first, name) is None:
            continue
        whole = torch.full(shape, empty, dtype=getattr(first, name).dtype)
        for index, result in pairs:
            part = getattr(result, name)
            whole[index, : part.shape[1]] = part
        setattr(out, name, whole)
    if first.gwhes is not None:
        out.gwhes = {group: value for _, r in pairs for group, value in (r.gwhes or {}).items()}
    agreements = [r.metrics["nthr_agreement"] for _, r in pairs if "nthr_agreement" in r.metrics]
    if agreements:
        out.metrics["nthr_agreement"] = sum(agreements) / len(agreements)
    return out
