"""A forward pass of a model that DeepSpeed has wrapped: log π of the action tokens alone, hidden states when asked.

In place of the output head's logits of all tokens, the head yields log π (and the entropy) of the tokens that are
wanted, without holding their logits (`OutputHead.logprobs`). It does so inside the wrapped model's own forward, so that
ZeRO-3 fetches weights as it is used to; a hook behind DeepSpeed's takes the result, and what the model makes of it
afterwards is not looked at.

With packing, the rows of a batch are laid end to end in one row, with positions that begin anew; `packed` keeps them
apart in sdpa's attention, the masks of transformers in others.

Under ZeRO-3 every forward pass is a collective call, and all ranks must make as many. `together` counts them: a rank
that is done makes empty passes until the last one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from agentrl.batch import TokenBatch
from agentrl.config import ModelConfig
from agentrl.engines.openrlhf.packed import use_packed_attention
from agentrl.engines.shared.head import OutputHead


@dataclass(frozen=True)
class _Asked:
    """What the output head is to yield in a pass."""

    wanted: Tensor  # (B, C) bool: the N tokens whose successors are looked at
    targets: Tensor  # (N,) these successors
    temperature: float = 1.0
    entropy: bool = False
    entropy_gradient: bool = True


class _Called:
    """A head that is more than one matrix (adapters): its parts are fetched where its own forward calls them."""

    def __init__(self, module: Any, forward: Callable[[Tensor], Tensor]) -> None:
        shape = getattr(module.weight, "ds_shape", module.weight.shape)
        self.weight, self.forward = torch.empty(shape, device="meta"), forward

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.forward(hidden)


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
        self._asked: _Asked | None = None
        self._hidden: Tensor | None = None
        self._result: Tensor | None = None
        self._in_step = False
        self.gradient = torch.zeros((), device=self.device)  # 1: a loss has had a gradient since this was set to 0
        self._by_rows = packing and use_packed_attention(self.module)
        self._plain_forward = self.own_head.module.forward
        self.own_head.module.forward = self._head_forward
        self.own_head.module.register_forward_hook(self._after_head)

    # ------------------------------------------------------------------------------------------------ forward passes

    def hidden(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Right-padded ids (B, C) to the input of the output head (B, C, d); off attention undefined."""
        self._forward(ids, attention_mask, _Asked(torch.zeros_like(attention_mask), ids[:0, 0]))
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
        asked = _Asked(mask, batch.input_ids[:, 1:][mask], temperature, entropy, entropy_gradient)
        flat = self._forward(batch.input_ids[:, :-1], batch.attention_mask[:, :-1], asked)
        self._hidden = None
        if flat.requires_grad:
            flat.register_hook(self._note_gradient)
        zero = torch.zeros(mask.shape, device=flat.device)
        return zero.masked_scatter(mask, flat[0]), zero.masked_scatter(mask, flat[1]) if entropy else None

    def _note_gradient(self, gradient: Tensor) -> None:
        self.gradient = torch.maximum(self.gradient, (gradient != 0).any().float())  # NaN is not 0

    def nothing(self) -> Tensor:
        """A differentiable zero from a pass over two tokens: keeps step with the other ranks."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        ones = torch.ones_like(ids, dtype=torch.bool)
        none = self._forward(ids, ones, _Asked(~ones, ids[:0, 0]), announce=False)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return none.float().sum() + 0.0 * hidden.float().sum()

    def _forward(self, ids: Tensor, attention_mask: Tensor, asked: _Asked, *, announce: bool = True) -> Tensor:
        """(1, N) log π, or (2, N) with the entropy, of the N tokens asked for; the head's input is in `_hidden`."""
        if announce and self._in_step:
            self._others_at_work(1)
        self._hidden = self._result = None
        try:
            if not self.packing:
                self._asked = asked
                self.wrapped(input_ids=ids, attention_mask=attention_mask.long(), use_cache=False)
            else:
                position = (attention_mask.long().cumsum(1) - 1)[attention_mask][None]
                self._asked = replace(asked, wanted=asked.wanted[attention_mask][None])
                cut = {"packed_lengths": attention_mask.sum(1).tolist()} if self._by_rows else {}
                self.wrapped(input_ids=ids[attention_mask][None], position_ids=position, use_cache=False, **cut)
        finally:
            self._asked = None
        assert self._result is not None
        result, self._result = self._result[0], None
        return result

    def _head_forward(self, hidden: Tensor, *args: Any, **more: Any) -> Any:
        """The head's own forward, or (1, 1 or 2, N) where one of our passes asks for the log π of N tokens."""
        asked = self._asked
        if asked is None:
            return self._plain_forward(hidden, *args, **more)
        self._hidden, head = hidden, self.own_head
        if not isinstance(head.module, nn.Linear):
            head = OutputHead(_Called(head.module, self._plain_forward), head.softcap)
        found = head.logprobs(
            hidden[asked.wanted], asked.targets, asked.temperature, asked.entropy, asked.entropy_gradient
        )
        return torch.stack([x for x in found if x is not None])[None]

    def _after_head(self, module: nn.Module, args: Any, output: Any) -> None:
        """Behind DeepSpeed's own hooks: what fetches weights for the backward pass is part of `output`."""
        if self._asked is not None:
            self._result = output

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
