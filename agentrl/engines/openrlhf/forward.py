"""A forward pass of a model that DeepSpeed has wrapped: logits of the action tokens alone, hidden states when asked.

A hook before the output head replaces its input (B, C, d) by the rows of the tokens that are wanted (1, N, d): the
logits of everything else are never computed, and whatever the model does with its logits afterwards (a softcap) is
still done. Everything goes through the wrapped model's own forward, so that ZeRO-3 fetches weights as it is used to.

With packing, the rows of a batch are laid end to end in one row, with positions that begin anew; `packed` keeps them
apart in sdpa's attention, the masks of transformers in others.

Under ZeRO-3 every forward pass is a collective call, and all ranks must make as many. `together` counts them: a rank
that is done makes empty passes until the last one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agentrl.batch import TokenBatch
from agentrl.config import ModelConfig
from agentrl.engines.openrlhf.packed import use_packed_attention
from agentrl.engines.shared.head import CHUNK_ELEMENTS, OutputHead


class WorkerModel:
    """One rank's part of a model; an `engines.base.Scorer`."""

    def __init__(
        self, wrapped: Any, config: ModelConfig, *, micro_batch_tokens: int, packing: bool = False, zero_stage: int = 2
    ) -> None:
        self.wrapped, self.module, self.config = wrapped, wrapped.module, config
        self.micro_batch_tokens, self.packing, self.partitioned = micro_batch_tokens, packing, zero_stage == 3
        self.device: torch.device = torch.device(wrapped.device)
        self.own_head = OutputHead.find(self.module, config.head)
        self.head = self.own_head  # what NTHR reads; a gathered copy during a pass under ZeRO-3
        self._wanted: Tensor | None = None
        self._hidden: Tensor | None = None
        self._in_step = False
        self.gradient = torch.zeros((), device=self.device)  # 1: a loss has had a gradient since this was set to 0
        self._by_rows = packing and use_packed_attention(self.module)
        self.own_head.module.register_forward_pre_hook(self._before_head)

    # ------------------------------------------------------------------------------------------------ forward passes

    def hidden(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Right-padded ids (B, C) to the input of the output head (B, C, d); off attention undefined."""
        self._forward(ids, attention_mask, torch.zeros_like(attention_mask))
        assert self._hidden is not None
        hidden, self._hidden = self._hidden, None
        if not self.packing:
            return hidden
        out = hidden.new_zeros(*ids.shape, hidden.shape[-1])
        out[attention_mask] = hidden[0]
        return out

    def logprobs(
        self, batch: TokenBatch, temperature: float = 1.0, *, entropy: bool = False, entropy_gradient: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """See `engines.base.Scorer.logprobs`."""
        mask = batch.action_mask
        logits = self._forward(batch.input_ids[:, :-1], batch.attention_mask[:, :-1], mask)
        self._hidden = None
        flat = _logprobs(logits, batch.input_ids[:, 1:][mask], temperature, entropy)
        if flat.requires_grad:
            flat.register_hook(self._note_gradient)
        zero = torch.zeros(mask.shape, device=flat.device)
        if not entropy:
            return zero.masked_scatter(mask, flat), None
        spread = flat[1] if entropy_gradient else flat[1].detach()
        return zero.masked_scatter(mask, flat[0]), zero.masked_scatter(mask, spread)

    def _note_gradient(self, gradient: Tensor) -> None:
        self.gradient = torch.maximum(self.gradient, (gradient != 0).any().float())  # NaN is not 0

    def nothing(self) -> Tensor:
        """A differentiable zero from a pass over two tokens: keeps step with the other ranks."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        ones = torch.ones_like(ids, dtype=torch.bool)
        logits = self._forward(ids, ones, ~ones, announce=False)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return logits.float().sum() + 0.0 * hidden.float().sum()

    def _forward(self, ids: Tensor, attention_mask: Tensor, wanted: Tensor, *, announce: bool = True) -> Tensor:
        """(N, V) logits of the N tokens `wanted` (B, C); leaves the head's input in `_hidden`."""
        if announce and self._in_step:
            self._others_at_work(1)
        try:
            if not self.packing:
                self._wanted = wanted
                out = self.wrapped(input_ids=ids, attention_mask=attention_mask.long(), use_cache=False)
            else:
                position = (attention_mask.long().cumsum(1) - 1)[attention_mask][None]
                self._wanted = wanted[attention_mask][None]
                cut = {"packed_lengths": attention_mask.sum(1).tolist()} if self._by_rows else {}
                out = self.wrapped(input_ids=ids[attention_mask][None], position_ids=position, use_cache=False, **cut)
        finally:
            self._wanted = None
        return out.logits[0]

    def _before_head(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._wanted is None:
            return None
        self._hidden = args[0]
        return (args[0][self._wanted][None], *args[1:])

    # ---------------------------------------------------------------------------------------------- keeping in step

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around forward passes without gradient whose number differs between ranks."""
        if not self.partitioned or dist.get_world_size() == 1:
            yield
            return
        self._in_step = True
        try:
            yield
            while self._others_at_work(0):
                self.nothing()
        finally:
            self._in_step = False

    def _others_at_work(self, me: int) -> bool:
        working = torch.tensor(float(me), device=self.device)
        dist.all_reduce(working)
        return bool(working > 0)

    @contextmanager
    def whole_head(self) -> Iterator[None]:
        """Around a pass with NTHR: the output head's matrix, which ZeRO-3 keeps in parts, is a copy in one piece."""
        if not self.partitioned:
            yield
            return
        import deepspeed

        own = self.own_head.module
        with deepspeed.zero.GatheredParameters(list(own.parameters(recurse=False))):
            copy = nn.Linear(1, 1, bias=own.bias is not None, device="meta")
            copy.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=False)
            if own.bias is not None:
                copy.bias = nn.Parameter(own.bias.detach().clone(), requires_grad=False)
        self.head = OutputHead(copy, self.own_head.softcap)
        try:
            yield
        finally:
            self.head = self.own_head


def _logprobs(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> Tensor:
    """log π of `targets` (N,) from logits (N, V): (N,), or (2, N) with the entropy below.

    In fp32, by chunks that the backward pass computes anew, so that one copy of the logits in the model's own precision
    is all that is kept.
    """

    def one(z: Tensor, y: Tensor) -> Tensor:
        z = z.float()
        if temperature != 1.0:
            z = z / temperature
        if not entropy:
            return -F.cross_entropy(z, y, reduction="none")
        logp = F.log_softmax(z, -1)
        ent = torch.special.entr(logp.exp()).sum(-1)
        return torch.stack([logp.gather(-1, y[:, None])[:, 0], ent])

    size = max(1, CHUNK_ELEMENTS // logits.shape[-1])
    if len(targets) <= size:
        return one(logits, targets)
    out = []
    for a in range(0, len(targets), size):
        z, y = logits[a : a + size], targets[a : a + size]
        again = torch.is_grad_enabled() and z.requires_grad
        out.append(checkpoint(one, z, y, use_reentrant=False) if again else one(z, y))
    return torch.cat(out, -1)
