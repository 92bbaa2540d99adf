"""A hand-written forward pass for Llama and Qwen2 of up to about half a billion parameters, in fp32 or bf16.

Two things make it faster than the module it takes its weights from, which it equals within 1e-4 (its
norms are rounded otherwise; 1.5e-5 was seen on SmolLM2-135M):

* Nothing is computed twice, and no padding: rows that begin alike (the prompt of a group) share the tokens that they
  begin with. Projections, norms and feed-forward layers see each distinct token once, (M, d); only attention sees rows.
* In sampling, attention reads the key/value cache where it lies: query heads of one key head are rows of one product,
  and no key is copied for them. Weights are read as they are; in bf16 they are converted once an update, not once a
  token.

Left out on purpose: sliding windows, rope scaling, dropout, gradient checkpointing, quantised or adapted weights.
`usable` says whether a model fits. Very small models have a path of their own (`qwen2.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from agentrl.engines.local.cache import Plan, RowCache
from agentrl.engines.local.qwen2 import rms_norm, rotary

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
LARGEST_WIDTH = 1024  # beyond this the products of matrices are all that counts


def usable(model: Any) -> bool:
    """Whether the hand-written path computes what `model` computes."""
    config = getattr(model, "config", None)
    if type(model).__name__ not in ARCHITECTURES or config is None or config.hidden_size > LARGEST_WIDTH:
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    layer = model.model.layers[0]
    parts = (model.lm_head, layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.up_proj, layer.mlp.down_proj)
    return (
        rope.get("rope_type", "default") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and not getattr(model, "is_gradient_checkpointing", False)
        and model.lm_head.bias is None
        and all(type(m) is nn.Linear for m in parts)
    )


@dataclass(frozen=True)
class Shared:
    """Right-padded rows (B, C) as their M distinct prefixes: a causal model computes the same for equal ones."""

    place: Tensor  # (B, C) int64: the distinct token of each position; padding is at 0
    first: Tensor  # (M,) int64: where in B x C each of them stands first
    again: Tensor  # (E,) int64: the other real positions in B x C,
    of: Tensor  # (E,) int64: and which distinct tokens they are


def shared_prefixes(ids: Tensor, real: Tensor) -> Shared:
    """Of right-padded `ids` (B, C), `real` (B, C) bool where there is no padding."""
    B, C = ids.shape
    ids, real = ids.cpu(), real.cpu()
    representative = torch.arange(B)[:, None].expand(B, C).contiguous()  # (B, C): the first row with this prefix
    same = torch.zeros(B, dtype=torch.int64)  # the first row that is equal up to here
    width = int(ids.max()) + 1 if ids.numel() else 1
    for c in range(C):
        key = torch.where(real[:, c], same * width + ids[:, c], -1 - torch.arange(B))
        _, inverse = torch.unique(key, return_inverse=True)
        first = torch.full((B,), B).scatter_reduce_(0, inverse, torch.arange(B), "amin")
        same = first[inverse]
        representative[:, c] = same
        if bool((same == torch.arange(B)).all()):  # all are different from here on
            break
    column = torch.arange(C)
    at = representative * C + column  # (B, C): the position that computes this one
    own = real & (representative == torch.arange(B)[:, None])
    number = torch.full((B * C,), 0)
    first = own.flatten().nonzero()[:, 0]
    number[first] = torch.arange(len(first))
    place = torch.where(real, number[at], 0)
    again = (real & ~own).flatten().nonzero()[:, 0]
    return Shared(place, first, again, place.flatten()[again])


class _Spread(torch.autograd.Function):
    """(M, ...) distinct tokens to (B, C, ...) rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Shared) -> Tensor:
        ctx.shared = shared
        return x.index_select(0, shared.place.flatten()).view(*shared.place.shape, *x.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        s: Shared = ctx.shared
        flat = grad.reshape(s.place.numel(), *grad.shape[2:])
        out = flat.index_select(0, s.first)
        return (out.index_add_(0, s.of, flat.index_select(0, s.again)) if len(s.again) else out), None


class _Collect(torch.autograd.Function):
    """(B, C, ...) rows to (M, ...) distinct tokens; each is read where it stands first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: Shared) -> Tensor:
        ctx.shared, ctx.shape = shared, x.shape
        return x.reshape(shared.place.numel(), *x.shape[2:]).index_select(0, shared.first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        s: Shared = ctx.shared
        out = grad.new_zeros(s.place.numel(), *grad.shape[1:])
        return out.index_copy_(0, s.first, grad).view(ctx.shape), None


@dataclass
class _Layer:
    """Sampling weights of one layer; views of the module's own, or bf16 copies."""

    norm1: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    biases: tuple[Tensor | None, ...]  # of q, k, v and o
    o: Tensor
    norm2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    mlp_biases: tuple[Tensor | None, ...]  # of gate, up and down


class FastDecoder:
    """Functional forward passes sharing the module's parameters."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        c = model.config
        self.model, self.layers, self.dtype = model, list(model.model.layers), dtype
        self.heads, self.kv_heads, self.width = c.num_attention_heads, c.num_key_value_heads, c.hidden_size
        self.hd = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.eps = c.rms_norm_eps
        self.cos, self.sin = rotary(c, self.hd, model.device)
        self.sampling: list[_Layer] = []

    # ------------------------------------------------------------------------------------------ scoring and training

    def hidden(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, C) right-padded ids to the head's input (B, C, d); differentiable. Padding holds something finite."""
        real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        shared = shared_prefixes(ids, real)
        shared = Shared(*(x.to(ids.device) for x in (shared.place, shared.first, shared.again, shared.of)))
        H, K, hd, M = self.heads, self.kv_heads, self.hd, len(shared.first)
        column = shared.first % ids.shape[1]
        cos, sin = self.cos[column][:, None], self.sin[column][:, None]  # (M, 1, hd)
        x = F.embedding(ids.flatten()[shared.first], self.model.model.embed_tokens.weight)  # (M, d)
        for layer in self.layers:
            a, m = layer.self_attn, layer.mlp
            y = rms_norm(x, layer.input_layernorm.weight, self.eps)
            qk = torch.cat([a.q_proj(y), a.k_proj(y)], -1).view(M, H + K, hd)
            first, second = qk.chunk(2, -1)
            qk = qk * cos + torch.cat([-second, first], -1) * sin
            v = a.v_proj(y).view(M, K, hd)
            qkv = _Spread.apply(torch.cat([qk.to(v.dtype), v], 1), shared).transpose(1, 2)  # (B, H + 2 K, C, hd)
            q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
            x = x + a.o_proj(_Collect.apply(o.transpose(1, 2), shared).reshape(M, H * hd))
            y = rms_norm(x, layer.post_attention_layernorm.weight, self.eps)
            x = x + m.down_proj(F.silu(m.gate_proj(y)) * m.up_proj(y))
        return _Spread.apply(rms_norm(x, self.model.model.norm.weight, self.eps), shared)

    # ------------------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the current weights for sampling; call after every update."""

        def own(w: Tensor | None) -> Any:
            return None if w is None else w.detach().to(self.dtype)

        self.sampling = []
        for layer in self.layers:
            a, m = layer.self_attn, layer.mlp
            self.sampling.append(
                _Layer(
                    layer.input_layernorm.weight.detach(),
                    own(a.q_proj.weight), own(a.k_proj.weight), own(a.v_proj.weight),
                    tuple(own(p.bias) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)), own(a.o_proj.weight),
                    layer.post_attention_layernorm.weight.detach(),
                    own(m.gate_proj.weight), own(m.up_proj.weight), own(m.down_proj.weight),
                    tuple(own(p.bias) for p in (m.gate_proj, m.up_proj, m.down_proj)),
                )
            )  # fmt: skip
        self.head = own(self.model.lm_head.weight)

    @torch.no_grad()
    def next_logits(self, ids: Tensor, last: Tensor, cache: RowCache, plan: Plan) -> Tensor:
        """Feed `ids` (n, C) under `plan`; logits (n, V) fp32 after each row's token `last[i]` (n,)."""
        n, C = ids.shape
        H, K, hd, d, N = self.heads, self.kv_heads, self.hd, self.width, ids.numel()
        R = H // K
        position = plan.position.reshape(-1)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # (N, 1, hd)
        mask = plan.mask if C == 1 else plan.mask.repeat(1, 1, R, 1)  # (n, 1, R C, length)
        x = F.embedding(ids.reshape(-1), self.model.model.embed_tokens.weight)  # (N, d) fp32
        for i, f in enumerate(self.sampling):
            y = F.rms_norm(x, (d,), f.norm1, self.eps).to(self.dtype)
            qk = torch.cat([F.linear(y, f.q, f.biases[0]), F.linear(y, f.k, f.biases[1])], -1).view(N, H + K, hd)
            first, second = qk.chunk(2, -1)
            qk = (qk * cos).addcmul_(torch.cat([-second, first], -1), sin).to(self.dtype)
            v = F.linear(y, f.v, f.biases[2]).view(N, K, hd)
            kv = torch.stack([qk[:, H:], v], 1).view(n, C, 2, K, hd)
            key, value = cache.write_and_read(i, kv, plan)
            q = qk[:, :H].view(n, C, K, R, hd).permute(0, 2, 3, 1, 4).reshape(n, K, R * C, hd)
            o = F.scaled_dot_product_attention(q, key, value, attn_mask=mask)
            o = o.view(n, K, R, C, hd).permute(0, 3, 1, 2, 4).reshape(N, H * hd)
            x = x + F.linear(o, f.o, f.biases[3])
            y = F.rms_norm(x, (d,), f.norm2, self.eps).to(self.dtype)
            gate, up = F.linear(y, f.gate, f.mlp_biases[0]), F.linear(y, f.up, f.mlp_biases[1])
            x = x + F.linear(F.silu(gate, inplace=True).mul_(up), f.down, f.mlp_biases[2])
        x = x[torch.arange(n, device=x.device) * C + last] if C > 1 else x
        return F.linear(F.rms_norm(x, (d,), self.model.model.norm.weight, self.eps).to(self.dtype), self.head).float()
