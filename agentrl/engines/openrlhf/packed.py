"""Attention over rows that lie end to end, one after the other with torch's sdpa: no mask over all of them.

transformers keeps packed rows apart with a mask of (T, T) over the T tokens of a micro-batch, which needs T² memory and
rules out sdpa's fast kernels. Here the rows are cut apart, and each is causal in itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

NAME = "agentrl_packed"


def use_packed_attention(model: Any) -> bool:
    """Whether `model`, which uses sdpa, now uses this; forward passes must then be given `packed_lengths`."""
    if model.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.config._attn_implementation = NAME
    return True


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packed_lengths: list[int],
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, heads, T, d) each to (1, T, heads, d), as `transformers` asks for it; rows of `packed_lengths` tokens."""
    rows = zip(*(x.split(packed_lengths, 2) for x in (query, key, value)), strict=True)
    out = [
        sdpa_attention_forward(module, q, k, v, _band(q, sliding_window), is_causal=None, **options)[0]
        for q, k, v in rows
    ]
    return torch.cat(out, 1), None


def _band(query: Tensor, width: int | None) -> Tensor | None:
    """The mask (n, n) of a row that is longer than a sliding window; None: causal is all."""
    n = query.shape[2]
    if width is None or n <= width:
        return None
    place = torch.arange(n, device=query.device)
    back = place[:, None] - place[None]
    return ((back >= 0) & (back < width))[None, None]
