"""log π and entropy of tokens from hidden states, differentiable, without the logits (N, V) of all of them in memory.

The forward pass is `head.head_pass`. The backward pass looks at blocks of the vocabulary: with the normaliser known,
the logits of a block are computed again and turned into the gradient with respect to them,

    ∂/∂z_v = a (onehot_v - p_v) - b p_v (log p_v + H)        a, b: gradients of the token's log π and entropy H

and what the block adds to the gradients of the hidden states and the head is two products of matrices. A block of the
head's gradient is a sum over all tokens at once, so that no precision is lost between parts of a batch. A token whose
probability is 0 in floating point has a gradient of 0 (log 0 · 0, which is not a number, is never formed).

The price is one product more in the backward pass; the gain is that of N x V elements kept from one to the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from agentrl.algorithms.head import Head, HeadPass, blocks, head_pass

LEAST = -200.0  # nats: exp of it is 0 in fp32, and it times 0 is 0


def token_logprobs(
    head: Head, hidden: Tensor, token_ids: Tensor, *, entropy: bool = False, done: HeadPass | None = None
) -> tuple[Tensor, Tensor | None]:
    """log π of `token_ids` (N,) given `hidden` (N, d), and the entropy when asked; (N,) in nats, fp32 or fp64.

    Differentiable with respect to `hidden` and the head's weight, bias and adapter. `done`: a pass over this head and
    these states that has been made already (with entropy, if that is asked).
    """
    narrow = wide = None
    if head.low_rank is not None:
        a, wide = head.low_rank
        dtype = head.dtype or head.weight.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = F.linear(hidden.to(dtype), a.to(dtype))  # (N, r): what A adds to the gradients is autograd's
    out = _Pass.apply(hidden, head.weight, head.bias, narrow, wide, token_ids, head, entropy, done)
    return (out[0], out[1]) if entropy else (out, None)


class _Pass(torch.autograd.Function):
    """See the module's text. One output (N,), or two with the entropy."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, narrow: Tensor | None, wide: Tensor | None,
        token_ids: Tensor, head: Head, entropy: bool, done: HeadPass | None,
    ) -> Any:  # fmt: skip
        if done is None:
            done = head_pass(head, hidden, token_ids, entropy=entropy)
        ctx.head, ctx.entropy = head, entropy
        ctx.save_for_backward(hidden, weight, bias, narrow, wide, token_ids, done.logsumexp, done.entropy)
        if not entropy:
            return done.logprobs.clone()
        assert done.entropy is not None
        return done.logprobs.clone(), done.entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, bias, narrow, wide, token_ids, lse, entropy = ctx.saved_tensors
        head: Head = ctx.head
        dtype = head.dtype or weight.dtype
        need_hidden, need_weight, need_bias, need_narrow, need_wide = ctx.needs_input_grad[:5]
        by_logprob, by_entropy = grads[0][:, None], grads[1][:, None] if ctx.entropy else None
        h = hidden.to(dtype)
        d_hidden = torch.zeros_like(hidden, dtype=head.result) if need_hidden else None
        d_weight = torch.empty_like(weight) if need_weight else None
        d_bias = torch.empty_like(bias) if need_bias else None
        d_narrow = torch.zeros_like(narrow, dtype=head.result) if need_narrow else None
        d_wide = torch.empty_like(wide) if need_wide else None
        with torch.autocast(hidden.device.type, enabled=False):
            for block in blocks(head.vocabulary, len(h), h.device):
                z = head.logits(h, block)
                slope = head.slope(z)
                g = _by_logits(z.sub_(lse[:, None]), entropy, by_logprob, by_entropy)
                at = token_ids - block.start
                hit = (at >= 0) & (at < g.shape[1])
                g.scatter_add_(1, at.clamp(0, g.shape[1] - 1)[:, None], (hit[:, None] * by_logprob).to(g.dtype))
                if slope is not None:
                    g.mul_(slope)
                if head.temperature != 1.0:
                    g.div_(head.temperature)
                if d_bias is not None:
                    d_bias[block] = g.sum(0).to(d_bias.dtype)
                g = g.to(dtype)
                if d_hidden is not None:
                    d_hidden += g @ weight[block].to(dtype)
                if d_weight is not None:
                    d_weight[block] = (g.t() @ h).to(d_weight.dtype)
                if d_narrow is not None:
                    d_narrow += g @ wide[block].to(dtype)
                if d_wide is not None:
                    d_wide[block] = (g.t() @ narrow).to(d_wide.dtype)
        if d_hidden is not None:
            d_hidden = d_hidden.to(hidden.dtype)
        if d_narrow is not None:
            d_narrow = d_narrow.to(narrow.dtype)
        return d_hidden, d_weight, d_bias, d_narrow, d_wide, None, None, None, None


def _by_logits(logp: Tensor, entropy: Tensor | None, by_logprob: Tensor, by_entropy: Tensor | None) -> Tensor:
    """-a p - b p (log p + H) from log p (N, n), which is overwritten; the other tensors (N, 1), entropy (N,)."""
    if by_entropy is None:
        return logp.exp_().mul_(-by_logprob)
    assert entropy is not None
    p = logp.exp()
    return logp.clamp_(min=LEAST).add_(entropy[:, None]).mul_(by_entropy).add_(by_logprob).mul_(p).neg_()
