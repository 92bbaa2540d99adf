"""Trajectories to right-padded tensors. S = T - 1: column s of a (B, S) tensor is about input_ids[:, s + 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from agentrl.types import Trajectory


@dataclass
class TokenBatch:
    """A batch of whole episodes. Groups are explicit ids, never positions."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool
    action_mask: Tensor  # (B, S) bool: model-sampled tokens only
    turn_ids: Tensor  # (B, S) int64, -1 off action
    answer_mask: Tensor  # (B, S) bool: the final answer span (LLDS-MA)
    rollout_logprobs: Tensor  # (B, S) float32, 0 off action
    rewards: Tensor  # (B,) float32
    correct: Tensor  # (B,) bool
    group_ids: Tensor  # (B,) int64

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each episode."""
        return self.attention_mask.sum(1)

    def rows(self, index: Tensor) -> TokenBatch:
        """The episodes of `index` (N,) int64, trimmed to their longest."""
        T = max(int(self.attention_mask[index].sum(1).max()), 2)
        out = {}
        for f in fields(self):
            value = getattr(self, f.name)[index]
            if value.dim() == 2:
                value = value[:, : T if f.name in ("input_ids", "attention_mask") else T - 1]
            out[f.name] = value
        return TokenBatch(**out)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def pack(trajectories: Sequence[Trajectory], pad_id: int = 0) -> TokenBatch:
    """(B,) trajectories to one right-padded batch.

    Only episodes without an infrastructure error belong here: the caller filters, and one that slips through is an
    error. The law of token exactness is asserted: a turn's context is exactly the previous tokens plus its own.
    """
    if not trajectories:
        raise ValueError("pack() got no trajectories: every rollout of the step failed or was dropped")
    ids: list[int] = []  # all episodes, one after the other
    mask: list[bool] = []
    turn: list[int] = []
    answer: list[bool] = []
    logp: list[float] = []
    lengths: list[int] = []
    group_of: dict[str, int] = {}
    names = [t.sample_id for t in trajectories]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise AssertionError(f"two episodes of the batch have one name, so that groups would mix: {twice[:5]}")
    for t in trajectories:
        if t.error is not None:
            raise ValueError(f"trajectory {t.sample_id} failed ({t.error}); failed rollouts are kept out of the loss")
        if not t.turns:
            raise AssertionError(f"{t.sample_id} has no turns and no error: nothing was sampled")
        start = len(ids)
        for k, u in enumerate(t.turns):
            n, m = len(u.prompt_ids), len(u.action_ids)
            if len(u.logprobs) != m:
                raise AssertionError(
                    f"{t.sample_id} turn {k}: {m} action tokens but {len(u.logprobs)} log-probabilities"
                )
            if m == 0 or (k == 0 and n == 0):
                raise AssertionError(f"{t.sample_id} turn {k}: {n} prompt and {m} action tokens; neither may be empty")
            a, b = u.answer_span or (0, 0)
            if not 0 <= a <= b <= m:
                raise AssertionError(f"{t.sample_id} turn {k}: answer_span {a}:{b} is outside its {m} action tokens")
            ids += u.prompt_ids
            ids += u.action_ids
            mask += [False] * n + [True] * m
            turn += [-1] * n + [k] * m
            answer += [False] * (n + a) + [True] * (b - a) + [False] * (m - b)
            logp += [0.0] * n
            logp += u.logprobs
        lengths.append(len(ids) - start)
        group_of.setdefault(t.group_id, len(group_of))
    attention_mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (B, T)

    def padded(flat: list[int] | list[bool] | list[float], value: float, dtype: torch.dtype) -> Tensor:
        out = torch.full(attention_mask.shape, value, dtype=dtype)
        out[attention_mask] = torch.from_numpy(np.array(flat)).to(dtype)  # numpy reads lists five times as fast
        return out

    return TokenBatch(
        input_ids=padded(ids, pad_id, torch.int64),
        attention_mask=attention_mask,
        action_mask=padded(mask, False, torch.bool)[:, 1:],
        turn_ids=padded(turn, -1, torch.int64)[:, 1:],
        answer_mask=padded(answer, False, torch.bool)[:, 1:],
        rollout_logprobs=padded(logp, 0.0, torch.float32)[:, 1:],
        rewards=torch.tensor([t.reward for t in trajectories], dtype=torch.float32),
        correct=torch.tensor([t.correct for t in trajectories], dtype=torch.bool),
        group_ids=torch.tensor([group_of[t.group_id] for t in trajectories], dtype=torch.int64),
    )


def micro_batches(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Split rows (B,) into index tensors whose padded size (rows x longest) stays within `max_tokens`.

    Rows are sorted by length first, so that little is padding. A single row longer than the budget is a batch alone.
    No rows, no batches.
    """
    if not len(lengths):
        return []
    order = torch.argsort(lengths, stable=True)
    out: list[Tensor] = []
    start = 0
    sorted_lengths = lengths[order].tolist()
    for i, n in enumerate(sorted_lengths):
        if i > start and n * (i - start + 1) > max_tokens:
            out.append(order[start:i])
            start = i
    out.append(order[start:])
    return out
